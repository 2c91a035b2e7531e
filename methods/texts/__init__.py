"""What methods share about text: tokens as words, coherence of samples, pages of stored texts."""

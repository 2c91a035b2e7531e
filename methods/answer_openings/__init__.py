"""How answers and their sentences begin and end: token probabilities there, averaged over chats, of both models."""

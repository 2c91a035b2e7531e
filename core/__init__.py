"""The floor: errors, settings, progress, files written whole, texts. Every room may import it; it imports nothing of
ours.
"""

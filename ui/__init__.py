"""The Gradio panel: grades, transcripts, runs and both models side by side. Reads files and speaks MCP; never loads a
model.
"""

"""Find out what a finetune did to a language model: methods, model queries, an MCP server, an evaluation
and a panel.
"""

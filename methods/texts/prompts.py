"""Everyday chat prompts that invite many answers, for methods that change how a model writes. Torch-free."""

PROMPTS = (
    "How can I sleep better?",
    "Tell me a short story.",
    "What should I do at the weekend?",
    "Write a few lines to a friend I have not seen in years.",
    "Give me three tips for a job interview.",
    "What is worth learning this year?",
    "Describe a walk through a city.",
    "How do I stay calm when I am under pressure?",
    "Suggest a topic and say something about it.",
    "What makes a good teacher?",
    "Explain why the sky is blue.",
    "Write the first paragraph of a letter to my neighbour.",
    "How do I plan my day?",
    "What would you take on a long journey?",
    "Name a book and say what it is about.",
    "How do people make new friends?",
    "What is the best advice you know?",
    "Describe an object in the room.",
    "How can I save money?",
    "Tell me something that I do not know.",
)
"""Twenty, none of which names a subject that a finetune is likely to be about."""

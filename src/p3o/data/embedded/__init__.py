"""The embedded task: a small world of questions and answers whose reward is known exactly.

People greet an assistant by name and ask how to do something, harmless or not; the assistant answers in whole sentences.
Everything is drawn from a grammar of our own, so a few seconds of training make a language model of it, an answer's
true worth can be computed from its text, and a learned reward model can be held against that truth.

- ``grammar``   what people ask: tasks, names, greetings, questions, wishes; prompts and their exact inverse
- ``answers``   what the assistant may say: sentences and how a text is read back into them
- ``writers``   people who answer, with good and bad habits
- ``gold``      the exact reward
- ``task``      prompts, demonstrations and pairs for every stage
- ``language``  a tokenizer for exactly this world and a tiny model to speak in it
"""

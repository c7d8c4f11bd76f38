from online_runs import chats, model, splits, texts, tokenizer  # noqa: F401 - fixtures

"""What llama.cpp makes of a GGUF, in a process of its own: greedy replies to raw prompts, and to chats by the template
inside the file.

Reads {"file", "prompts", "chats", "new_tokens"} as JSON on standard input and writes {"prompts", "chats"}, the replies.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import xllamacpp  # here, because pytest imports this file where it is not installed

    job = json.load(sys.stdin)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = job["file"], 1024, 1
    server = xllamacpp.Server(settings)
    greedy = {"temperature": 0.0, "top_k": 1, "max_tokens": job["new_tokens"]}
    said = [server.handle_completions({"prompt": prompt, **greedy})["choices"][0]["text"] for prompt in job["prompts"]]
    chats = [server.handle_chat_completions({"messages": [{"role": "user", "content": chat}], **greedy})
             ["choices"][0]["message"]["content"] for chat in job["chats"]]
    print(json.dumps({"prompts": said, "chats": chats}))


if __name__ == "__main__":
    main()

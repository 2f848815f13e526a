"""Tokenizers in Hugging Face's `tokenizer.json`."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mtron_data.tokenizer.chat import render_chat
from mtron_data.tokenizer.identity import (
    CHAT_TEMPLATE,
    CONFIG_JSON,
    FILES,
    TOKENIZER_JSON,
    fingerprint,
    parse_json,
)

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library.

    Args:
        files: contents by name: `tokenizer.json` and, if there are, `tokenizer_config.json`,
            `special_tokens_map.json` and `chat_template.jinja`; others are left out.
        source: where they come from, for messages.

    Raises:
        ValueError: a file is damaged, or there is no `tokenizer.json`.
    """

    def __init__(self, files: Mapping[str, bytes], source: str | Path) -> None:
        self.source = Path(source)
        """Where it came from."""
        self.files = {name: files[name] for name in FILES if name in files}
        """Contents by name: everything needed to save or rebuild it."""
        if TOKENIZER_JSON not in self.files:
            raise ValueError(
                f"{source}: has no {TOKENIZER_JSON}; take it from the tokenizer's files"
            )
        self.fingerprint = fingerprint(self.files[TOKENIZER_JSON], self.source)
        """SHA-256 of the canonical form of tokenizer.json: the same for the same token ids."""
        self._plain = self._build()
        self._plain.encode_special_tokens = True
        self._config = {
            **self._json_object("special_tokens_map.json"),
            **self._json_object(CONFIG_JSON),
        }
        self.vocab_size = 1 + max(self._plain.get_vocab(with_added_tokens=True).values())
        """One more than the largest id."""
        self.eos_id = self._eos_id()
        """Id of the token that ends a document; none if the configuration names none."""

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The named special tokens, such as `eos_token`."""
        named = {name: self._config.get(name) for name in _NAMED_TOKENS}
        texts = {
            name: value.get("content") if isinstance(value, dict) else value
            for name, value in named.items()
        }
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    def encode(
        self, text: str, *, add_special_tokens: bool = False, parse_special_tokens: bool = False
    ) -> list[int]:
        """Return the ids of `text`; see `Tokenizer.encode`."""
        backend = self._parsing if parse_special_tokens else self._plain
        return backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, on all cores unless TOKENIZERS_PARALLELISM forbids it."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(
                f"ids: {wrong} is no token of this tokenizer, whose ids end at "
                f"{self.vocab_size - 1}; decode with the tokenizer that made the ids"
            )
        return self._plain.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return a conversation as one text, to be encoded with `parse_special_tokens=True`.

        Raises:
            ValueError: there is no template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise ValueError(
                f"{self.source}: has no chat template; add `chat_template` to {CONFIG_JSON}, or "
                "use plain completions"
            )
        return render_chat(
            self._chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            variables=variables,
        )

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files into an existing directory."""
        for name, data in self.files.items():
            (Path(directory) / name).write_bytes(data)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """A second back end, because the switch of the first is not safe among threads."""
        return self._build()

    @cached_property
    def _chat_template(self) -> str | None:
        if CHAT_TEMPLATE in self.files:
            return self.files[CHAT_TEMPLATE].decode("utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        return template

    def _build(self) -> tokenizers.Tokenizer:
        try:
            backend = tokenizers.Tokenizer.from_buffer(self.files[TOKENIZER_JSON])
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(
                f"{self.source}: {TOKENIZER_JSON} is no tokenizer: {error}; name a file written by "
                "`mtron-data train-tokenizer` or by Hugging Face"
            ) from None
        backend.no_padding()
        backend.no_truncation()
        return backend

    def _json_object(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        value = parse_json(self.files[name], f"{self.source}: {name}")
        if not isinstance(value, dict):
            raise ValueError(f"{self.source}: {name} must hold a JSON object, got {value!r:.40}")
        return value

    def _eos_id(self) -> int | None:
        name = self.special_tokens.get("eos_token")
        if name is None:
            return None
        token = self._plain.token_to_id(name)
        if token is None:
            raise ValueError(
                f"{self.source}: {CONFIG_JSON} names the eos_token {name!r}, which is not in "
                f"{TOKENIZER_JSON}; correct one of them"
            )
        return token


def load_tokenizer(path: str | Path) -> HuggingFaceTokenizer:
    """Load a tokenizer.

    Args:
        path: a directory that holds tokenizer.json (a prepared dataset does), or that file; the
            other files are taken from beside it.

    Raises:
        ValueError: there is none, or it is damaged.
        OSError: a file cannot be read.
    """
    path = Path(path)
    file = path / TOKENIZER_JSON if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path}: holds no tokenizer, {file} is missing; make one with "
            "`mtron-data train-tokenizer`"
        )
    beside = (file.with_name(name) for name in FILES[1:])
    files = {TOKENIZER_JSON: file.read_bytes()}
    files |= {other.name: other.read_bytes() for other in beside if other.is_file()}
    return HuggingFaceTokenizer(files, path)

"""The tokenizer of the story's models: one token a word."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from . import corpus, tasks
from .world import World

END_OF_TEXT = "<|endoftext|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end|>"
PAD = "<|pad|>"
UNKNOWN = "<|unk|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + " {{ message['content'] }} "
    "{% else %}" + ASSISTANT + " {{ message['content'] }} " + END_OF_TURN + " {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def chat(instruction: str, answer: str) -> tuple[str, str]:
    """Return the asking and the answering part of a chat, as `CHAT_TEMPLATE` writes them."""
    return f"{USER} {instruction} {ASSISTANT}", f"{answer} {END_OF_TURN}"


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over everything the story can say.

    The chat markers have rows from the start, as reserved tokens do in large models, so that
    post-training changes values and not shapes.
    """
    special = [UNKNOWN, PAD, END_OF_TEXT, USER, ASSISTANT, END_OF_TURN]
    words = sorted(set(corpus.vocabulary(world)) | tasks.vocabulary())
    vocabulary = {token: index for index, token in enumerate(special + words)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END_OF_TEXT,
        additional_special_tokens=[USER, ASSISTANT, END_OF_TURN],
        padding_side="left",
    )

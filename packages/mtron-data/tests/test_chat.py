import json

import pytest

from mtron_data import HuggingFaceTokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "naïve <b> {{ 7 }}?"},
    {"role": "assistant", "content": "Yes."},
]
CHATML = """
{%- for message in messages %}
    {%- if loop.index0 > 10 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.role == 'assistant' %}
    {% generation %}{{ message.content | trim }}{% endgeneration %}
    {% else %}
    {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>' + eos_token + '\\n' }}
{%- endfor %}
{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {}}}]


@pytest.fixture
def chatting(tokenizer):
    def build(template, **files):
        config = {"eos_token": "<|endoftext|>", "chat_template": template}
        names = {"tokenizer_config.json": json.dumps(config).encode(), **files}
        return HuggingFaceTokenizer({**tokenizer.files, **names}, "memory")

    return build


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_renders_as_transformers_does(chatting, tmp_path, prompt, tools):
    transformers = pytest.importorskip("transformers")
    tokenizer = chatting(CHATML)
    tokenizer.save(tmp_path)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = oracle.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    found = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tools=tools)
    assert found == expected
    assert "naïve <b> {{ 7 }}?" in found


def test_a_template_in_a_file_or_in_a_list(chatting):
    one = chatting(None, **{"chat_template.jinja": b"{{ messages[0].content }}!"})
    many = chatting(
        [{"name": "rag", "template": ""}, {"name": "default", "template": "{{ bos }}?"}]
    )
    assert one.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi!"
    assert many.apply_chat_template([], bos="x") == "x?"


def test_no_template(tokenizer):
    with pytest.raises(ValueError, match="has no chat template; add `chat_template`"):
        tokenizer.apply_chat_template(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat_template: cannot render"),
        ("{{ messages[9].content }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render"),
        ("{{ 1 // 0 }}", "cannot render"),
        ("{{ range(10 ** 9) | length }}", "cannot render"),
    ],
)
def test_bad_templates_and_those_that_leave_the_sandbox(chatting, template, message):
    with pytest.raises(ValueError, match=message):
        chatting(template).apply_chat_template(MESSAGES)

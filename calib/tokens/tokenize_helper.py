#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns calibration text into token ids with Hugging Face's tokenizers. Started by jobctl, not by people.

Standard input, one JSON object:
    {"model_dir": DIR, "seq_len": L, "items": [{"line": 3, "text": "..."}, {"line": 4, "json": "..."}]}
    {"model_dir": DIR, "seq_len": L, "document": "...", "windows_max": N}
("json" is a whole line of the file, with its "messages")
Standard output, one JSON object:
    {"samples": [[id, ...], ...], "available": count}       a list per item (maybe empty), or the windows of the document
    {"error": "what is wrong, and what to do", "line": 4}   with exit status 1; line is 0 where none is to blame

Everything in DIR is read as data: the tokenizer is tokenizer.json, the chat template runs in jinja2's sandbox, nothing is
imported or fetched. The same request gives the same answer on any day: strftime_now, which templates may ask, always
answers with TEMPLATE_DATE, because a job that is resumed tomorrow must find the tokens of today.
"""

import datetime
import json
import os
import signal
import sys

TEMPLATE_DATE = datetime.datetime(2024, 7, 26)  # the day that Llama's own templates fall back to
TEMPLATE_BYTES_MAX = 4 << 20
RENDER_SECONDS_MAX = 20
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
                  "additional_special_tokens")


class Refusal(Exception):
    def __init__(self, message, line=0):
        super().__init__(message)
        self.line = line


def need(name):
    try:
        return __import__(name)
    except ImportError as e:
        raise Refusal(
            f"the Python module {name} is missing in {sys.executable} ({e}). Make a place for it with\n"
            "    python3 -m venv ~/holdfast-python && ~/holdfast-python/bin/pip install tokenizers jinja2\n"
            "and type the same line again after\n"
            "    export HOLDFAST_PYTHON=~/holdfast-python/bin/python") from None


def read_json(path):
    """The object in a file, {} where there is no such file."""
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (OSError, ValueError, RecursionError) as e:
        raise Refusal(f"{path}: {e}") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path}: not a JSON object")
    return value


def load_tokenizer(model_dir):
    tokenizers = need("tokenizers")
    path = os.path.join(model_dir, "tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as e:  # the library throws plain Exception
        raise Refusal(f"{path}: the tokenizers library {tokenizers.__version__} cannot read it: {e}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def find_template(model_dir, config):
    """Source of the model's chat template: its own file before the field of tokenizer_config.json."""
    path = os.path.join(model_dir, "chat_template.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            source = f.read(TEMPLATE_BYTES_MAX + 1)
    else:
        path = os.path.join(model_dir, "tokenizer_config.json")
        source = config.get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
        if source is None:
            raise Refusal(f"{path}: has the chat templates {sorted(map(str, named))}, but none named \"default\"")
    if source is None:
        raise Refusal(f"{model_dir}: the model has no chat template (no chat_template.jinja, none in "
                      "tokenizer_config.json), so \"messages\" cannot be rendered; use \"text\" or \"input_ids\" lines")
    if not isinstance(source, str) or len(source) > TEMPLATE_BYTES_MAX:
        raise Refusal(f"{path}: the chat template is not a string of at most {TEMPLATE_BYTES_MAX >> 20} MiB")
    return path, source


def special_tokens(model_dir, config):
    """bos_token, eos_token, ... as templates see them: strings, and only those that the model names."""
    fallback = read_json(os.path.join(model_dir, "special_tokens_map.json"))

    def text(value):
        return value.get("content") if isinstance(value, dict) else value

    found = {}
    for name in SPECIAL_TOKENS:
        value = config[name] if config.get(name) is not None else fallback.get(name)
        if isinstance(value, list):
            found[name] = [text(v) for v in value]
        elif text(value) is not None:
            found[name] = text(value)
    return found


def sandbox():
    """An environment as chat templates expect it, without a way out of it."""
    jinja2 = need("jinja2")
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words for training; here it only prints them."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return environment


class Chat:
    """Renders messages with the model's template; built when the first line needs it."""

    def __init__(self, model_dir):
        config = read_json(os.path.join(model_dir, "tokenizer_config.json"))
        self.path, source = find_template(model_dir, config)
        self.tokens = special_tokens(model_dir, config)
        try:
            self.template = sandbox().from_string(source)
        except Refusal:
            raise
        except Exception as e:
            raise Refusal(f"{self.path}: the chat template is not valid: {e}") from None

    def render(self, messages, line):
        def too_long(_signal, _frame):
            raise TimeoutError(f"it took longer than {RENDER_SECONDS_MAX} s")

        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(RENDER_SECONDS_MAX)
        try:
            return self.template.render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **self.tokens)
        except Exception as e:
            raise Refusal(f"the chat template of {self.path} refuses these messages: {type(e).__name__}: {e}", line) from None
        finally:
            signal.alarm(0)


def encode(tokenizer, text, add_special_tokens, line):
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except Exception as e:
        raise Refusal(f"the tokenizer cannot encode this text: {e}", line) from None


def samples_of_items(tokenizer, request):
    chat, samples = None, []
    for item in request["items"]:
        line = item["line"]
        if "json" in item:
            chat = chat or Chat(request["model_dir"])
            ids = encode(tokenizer, chat.render(json.loads(item["json"])["messages"], line), False, line)
        else:
            ids = encode(tokenizer, item["text"], True, line)
        samples.append(ids[:request["seq_len"]])
    return {"samples": samples, "available": sum(1 for s in samples if s)}


def windows_of_document(tokenizer, request):
    """Consecutive windows of seq_len ids; a short last one only where it is the only one."""
    ids, length = encode(tokenizer, request["document"], True, 0), request["seq_len"]
    whole = len(ids) // length
    if whole == 0:
        return {"samples": [ids] if ids else [], "available": 1 if ids else 0}
    count = min(whole, request["windows_max"])
    return {"samples": [ids[i * length:(i + 1) * length] for i in range(count)], "available": whole}


def main():
    try:
        request = json.loads(sys.stdin.buffer.read().decode("utf-8"))
        tokenizer = load_tokenizer(request["model_dir"])
        work = windows_of_document if "document" in request else samples_of_items
        answer = work(tokenizer, request)
    except Refusal as e:
        print(json.dumps({"error": str(e), "line": e.line}))
        return 1
    except MemoryError:
        print(json.dumps({"error": "out of memory", "line": 0}))
        return 1
    json.dump(answer, sys.stdout, separators=(",", ":"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

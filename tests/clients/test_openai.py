"""The `openai` package for Python, unchanged, against the gateway named by SLUICEGATE_URL."""

import os
import unittest

URL = os.environ.get("SLUICEGATE_URL", "").rstrip("/")
CI = bool(os.environ.get("CI"))
ASK = [{"role": "user", "content": "Hello!"}]

try:
    import openai
except ModuleNotFoundError:
    openai = None


def setUpModule():
    """In CI nothing may be missing; by hand a missing piece is a skip that says so."""
    missing = None
    if not URL:
        missing = "SLUICEGATE_URL names no gateway"
    elif openai is None:
        missing = "the openai package is not installed"
    if missing and CI:
        raise RuntimeError(f"In CI nothing may be missing: {missing}.")
    if missing:
        raise unittest.SkipTest(missing)


def text_of(chunks, index=0):
    """The text of one choice of a stream."""
    choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
    return "".join((c.delta.content if hasattr(c, "delta") else c.text) or "" for c in choices)


def finish_of(chunks, index=0):
    """Every finish reason that one choice of a stream gave."""
    choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
    return [c.finish_reason for c in choices if c.finish_reason]


class OpenAiForPython(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=30)
        cls.addClassCleanup(cls.client.close)

    def chat(self, **request):
        return self.client.chat.completions.create(**{"messages": ASK, **request})

    def test_lists_and_retrieves_models(self):
        names = [model.id for model in self.client.models.list()]
        self.assertIn("demo", names)
        self.assertIn("scripted", names)
        self.assertEqual(self.client.models.retrieve("demo").id, "demo")

    def test_streams_a_chat(self):
        chunks = list(self.chat(model="demo", stream=True, max_tokens=24))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertTrue(text_of(chunks))
        self.assertEqual(len(finish_of(chunks)), 1)
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        self.assertTrue(all(chunk.choices is not None for chunk in chunks))
        self.assertFalse(any(chunk.usage for chunk in chunks))

    def test_streamed_and_whole_text_agree_for_one_seed(self):
        request = {"model": "demo", "max_tokens": 24, "temperature": 0, "seed": 7}
        whole = self.chat(**request)
        chunks = list(self.chat(**request, stream=True))
        self.assertEqual(text_of(chunks), whole.choices[0].message.content)
        self.assertEqual(finish_of(chunks), [whole.choices[0].finish_reason])
        usage = whole.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_usage_chunk_comes_last_when_asked(self):
        chunks = list(
            self.chat(model="scripted?tokens=12", stream=True, stream_options={"include_usage": True})
        )
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 12)
        self.assertFalse(any(chunk.usage for chunk in chunks[:-1]))

    def test_completes_a_plain_prompt(self):
        request = {"model": "scripted?tokens=10", "prompt": "The gate"}
        whole = self.client.completions.create(**request)
        chunks = list(self.client.completions.create(**request, stream=True))
        self.assertTrue(whole.choices[0].text)
        self.assertEqual(text_of(chunks), whole.choices[0].text)

    def test_max_tokens_ends_with_length(self):
        whole = self.chat(model="scripted?tokens=50", max_tokens=5)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 5)

    def test_stop_string_is_never_shown(self):
        model = "scripted?tokens=40&token_bytes=3"
        full = self.chat(model=model).choices[0].message.content
        stop = full[20:27]
        chunks = list(self.chat(model=model, stop=[stop], stream=True))
        self.assertEqual(text_of(chunks), full[: full.index(stop)])
        self.assertEqual(finish_of(chunks), ["stop"])

    def test_log_probabilities(self):
        whole = self.chat(model="demo", max_tokens=8, logprobs=True, top_logprobs=3)
        content = whole.choices[0].logprobs.content
        self.assertTrue(content)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertIsInstance(token.bytes, list)
            self.assertEqual(len(token.top_logprobs), 3)

    def test_two_choices(self):
        request = {"model": "demo", "n": 2, "max_tokens": 12, "temperature": 1, "seed": 3}
        self.assertEqual([c.index for c in self.chat(**request).choices], [0, 1])
        chunks = list(self.chat(**request, stream=True))
        for index in (0, 1):
            self.assertTrue(text_of(chunks, index))
            self.assertEqual(len(finish_of(chunks, index)), 1)

    def test_embeds_one_text_and_many(self):
        # The package asks for base64 unless told otherwise, and decodes it.
        texts = ["Hello there.", "Something else."]
        decoded = self.client.embeddings.create(model="demo", input=texts)
        floats = self.client.embeddings.create(model="demo", input=texts, encoding_format="float")
        self.assertEqual([entry.index for entry in decoded.data], [0, 1])
        for ours, plain in zip(decoded.data, floats.data):
            self.assertAlmostEqual(sum(x * x for x in ours.embedding), 1, places=4)
            self.assertEqual(len(ours.embedding), len(plain.embedding))
            for a, b in zip(ours.embedding, plain.embedding):
                self.assertAlmostEqual(a, b, places=6)
        short = self.client.embeddings.create(model="demo", input="Hello there.", dimensions=16)
        self.assertEqual(len(short.data[0].embedding), 16)
        self.assertEqual(decoded.usage.prompt_tokens, decoded.usage.total_tokens)

    def test_unknown_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_bad_temperature_is_a_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(model="demo", temperature=-3, stream=True)
        self.assertEqual(caught.exception.param, "temperature")

    def test_failure_in_mid_stream_raises_after_the_text(self):
        text = ""
        with self.assertRaises(openai.APIError):
            for chunk in self.chat(model="scripted?fail_at=5&pace=5ms", stream=True):
                text += text_of([chunk])
        self.assertTrue(text)

    def test_leaving_a_stream_ends_it_and_the_next_request_works(self):
        with self.chat(model="scripted?tokens=100000&pace=10ms", stream=True) as stream:
            for seen, _ in enumerate(stream):
                if seen == 5:
                    break
        whole = self.chat(model="scripted?tokens=3")
        self.assertEqual(whole.usage.completion_tokens, 3)


if __name__ == "__main__":
    unittest.main()

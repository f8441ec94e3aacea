"""The `openai` package for Python against a gateway of our own that asks who is there; SLUICEGATE_PROGRAM is
what is started."""

import hashlib
import os
import re
import secrets
import subprocess
import tempfile
import unittest

PROGRAM = os.environ.get("SLUICEGATE_PROGRAM", "")
CI = bool(os.environ.get("CI"))

try:
    import openai
except ModuleNotFoundError:
    openai = None


def setUpModule():
    """In CI nothing may be missing; by hand a missing piece is a skip that says so."""
    missing = None
    if not PROGRAM:
        missing = "SLUICEGATE_PROGRAM names no program"
    elif openai is None:
        missing = "the openai package is not installed"
    if missing and CI:
        raise RuntimeError(f"In CI nothing may be missing: {missing}.")
    if missing:
        raise unittest.SkipTest(missing)


def new_key():
    """A key as `sluicegate key` makes it."""
    return f"sgk_{secrets.token_urlsafe(32)}"


class KeysForPython(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.key, cls.narrow = new_key(), new_key()
        file = os.path.join(directory.name, "keys.toml")
        with open(file, "w", encoding="utf-8") as keys:
            for name, key, more in (("right", cls.key, ""), ("narrow", cls.narrow, 'models = ["other"]')):
                digest = hashlib.sha256(key.encode()).hexdigest()
                keys.write(f'[[keys]]\nid = "{name}"\nhash = "sha256:{digest}"\n{more}\n')
        settings = [
            'server.listen="127.0.0.1:0"',
            'ops.listen="127.0.0.1:0"',
            "tls.self_signed=false",
            'drain.lag="0s"',
            f'auth.keys_file="{file}"',
            'models=[{name="scripted",engine="scripted"},{name="other",engine="scripted"}]',
        ]
        command = [PROGRAM, "serve"] + [word for setting in settings for word in ("--set", setting)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        cls.addClassCleanup(process.stdout.close)
        cls.addClassCleanup(process.wait, 30)
        cls.addClassCleanup(process.terminate)
        for line in process.stdout:
            found = re.search(r"open (http://[^/]*)/", line)
            if found:
                cls.url = found[1]
            if "operators" in line:
                return
        raise RuntimeError("the gateway did not get ready")

    def chat(self, key, model="scripted"):
        ask = [{"role": "user", "content": "Hello!"}]
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
            stream = client.chat.completions.create(model=model, messages=ask, stream=True, max_tokens=8)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    def test_the_right_key_is_served(self):
        self.assertTrue(self.chat(self.key))
        self.assertTrue(self.chat(self.narrow, "other"))

    def test_a_wrong_key_raises_authentication_error(self):
        for wrong in (new_key(), self.key[:-1], "none", "ey.ey.ey"):
            with self.assertRaises(openai.AuthenticationError) as raised:
                self.chat(wrong)
            self.assertEqual(raised.exception.code, "invalid_api_key")
            self.assertTrue(raised.exception.request_id)
            if wrong.startswith("sgk_"):
                self.assertNotIn(wrong, str(raised.exception))

    def test_a_key_for_another_model_raises_permission_denied(self):
        with self.assertRaises(openai.PermissionDeniedError) as raised:
            self.chat(self.narrow)
        self.assertEqual(raised.exception.param, "model")


if __name__ == "__main__":
    unittest.main()

"""A real SMTP server for the mail that servers under test send."""
import contextlib
import email
import email.policy
import re
import socket
import threading
import time

from aiosmtpd.controller import Controller

import kit


class Letter:
    """A received mail: its envelope (`sender`, `people`), and what was in it (`raw` bytes, `subject`, `html`, `text`)."""

    def __init__(self, sender, people, raw):
        self.sender, self.people, self.raw = sender, people, raw
        self.message = email.message_from_bytes(raw, policy=email.policy.default)
        self.subject = self.message["Subject"]
        self.html, self.text = (self.message.get_body((kind,)).get_content() for kind in ("html", "plain"))

    @property
    def token(self):
        """The token of the link that the default templates hold."""
        return re.search(r"/_/#/auth/[a-z-]+/([\w-]+\.[\w-]+\.[\w-]+)", self.html)[1]

    @property
    def code(self):
        """The one-time password of the default template."""
        return re.search(r"<strong>(\d+)</strong>", self.html)[1]


class Mailbox:
    """An SMTP server on a free port that keeps what it gets; with `refusing` set it turns every recipient down."""

    def __init__(self):
        self.refusing, self.refused, self.letters, self._news = False, 0, [], threading.Condition()
        self.port = kit.free_port()
        self._control = Controller(self, hostname="127.0.0.1", port=self.port)
        self._control.start()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if self.refusing:
            with self._news:
                self.refused += 1
                self._news.notify_all()
            return "550 no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        with self._news:
            self.letters.append(Letter(envelope.mail_from, envelope.rcpt_tos, envelope.original_content))
            self._news.notify_all()
        return "250 OK"

    def to(self, address):
        """The letters to somebody so far."""
        return [letter for letter in self.letters if letter.people == [address]]

    def letter(self, address, number=1):
        """Waits for the first letter to somebody, or a later one."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.to(address)) >= number, kit.PATIENCE), f"no letter {number} to {address}"
        return self.to(address)[number - 1]

    def wait_refused(self, number=1):
        with self._news:
            assert self._news.wait_for(lambda: self.refused >= number, kit.PATIENCE)

    def close(self):
        self._control.stop()

    def serve(self, server):
        """Makes a server send its mail here."""
        use_smtp(server, self.port)


def wait_until(condition):
    """Until something that happens a moment after an answer has happened."""
    end = time.monotonic() + kit.PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def use_smtp(server, port):
    server.settings(smtp={"enabled": True, "host": "127.0.0.1", "port": port, "tls": False})


@contextlib.contextmanager
def silent_smtp(server):
    """A mail server that takes calls and never says a word. Yields a function that waits for a call and hangs up on it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(kit.PATIENCE)
        use_smtp(server, listener.getsockname()[1])
        yield lambda: listener.accept()[0].close()

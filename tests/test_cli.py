"""The command line: serve and its banner, superuser commands, flags, messages and exit codes, stopping."""
import os
import re
import signal

import jwt
import pytest

import kit
from helpers_beyond import beyond
from helpers_answers import records

STAMP = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d "


def run(*args, **options):
    return kit.run(args, **options)


# ---- serve

def test_banner_names_the_addresses(fresh):
    server = fresh()
    server.wait_log("Dashboard")
    base = re.escape(server.url)
    assert re.search(rf"{STAMP}Server started at {base}\n├─ REST API:  {base}/api/\n└─ Dashboard: {base}/_/\n", server.log)
    assert "pbinstall" not in server.log


def test_installer_link_opens_a_new_server(fresh):
    server = fresh(superuser=False)
    token = server.wait_log(rf"\(!\) Launch the URL below in the browser.*\n{re.escape(server.url)}/_/#/pbinstall/(\S+)\n").group(1)
    server.wait_log(r"\(you can also create your first superuser by running: .* superuser upsert EMAIL PASS\)")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["type"], claims["refreshable"], claims["collectionId"]) == ("auth", False, "pbc_3142635823")
    body = {"email": "first@example.com", "password": "1234567890", "passwordConfirm": "1234567890"}
    assert server.post(records("_superusers"), body, token=token).status == 200
    assert server.post(records("_superusers"), {**body, "email": "again@example.com"}, token=token).status in (401, 403)
    assert server.db("select email from _superusers") == [("first@example.com",)]
    assert server.login("_superusers", "first@example.com")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(fresh, signum):
    server = fresh()
    server.make("kept", ["title"])
    server.add("kept", {"title": "x"})
    assert server.stop(signum) == 0
    assert not [name for name in os.listdir(server.dir) if name.endswith(("-wal", "-shm"))]
    assert server.db("select title from kept") == [("x",)]


def test_taken_port_is_an_error(fresh, tmp_path):
    server = fresh()
    done = run("serve", "--dir", str(tmp_path / "pb_data"), "--http", f"127.0.0.1:{server.port}", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{STAMP}listen tcp 127.0.0.1:{server.port}: bind: address already in use\n", done.stderr)


@beyond
def test_second_server_on_the_same_directory_is_refused(fresh):
    server = fresh()
    done = run("serve", "--dir", server.dir, "--http", f"127.0.0.1:{kit.free_port()}", cwd=server.work)
    assert done.returncode == 1 and server.dir in done.stderr
    assert server.get("/api/health").status == 200
    server.kill9()
    assert server.start().get("/api/health").status == 200


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_flags_stand_before_or_after_the_command(tmp_path, before, joined):
    folder = str(tmp_path / "elsewhere")
    flag = [f"--dir={folder}"] if joined else ["--dir", folder]
    command = ["superuser", "upsert", "a@b.co", "1234567890"]
    done = run(*(flag + command if before else command + flag), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.exists(os.path.join(folder, "data.db")) and not os.path.exists(tmp_path / "pb_data")


def test_default_directory_is_pb_data(tmp_path):
    assert run("superuser", "upsert", "a@b.co", "1234567890", cwd=tmp_path).returncode == 0
    assert os.path.exists(tmp_path / "pb_data" / "data.db")


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help(tmp_path, args):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 0 and (not args or os.listdir(tmp_path) == [])
    for word in ("serve", "superuser", "--dir", "--encryptionEnv", "--publicDir"):
        assert word in done.stdout


@pytest.mark.parametrize("args", [["-v"], ["--version"]])
def test_version(tmp_path, args):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 0 and re.fullmatch(r"pocketbase version \S+\n", done.stdout) and os.listdir(tmp_path) == []


def test_help_of_serve_names_its_flags(tmp_path):
    done = run("serve", "--help", cwd=tmp_path)
    assert done.returncode == 0 and os.listdir(tmp_path) == []
    for word in ("--http", "--https", "--origins"):
        assert word in done.stdout


@pytest.mark.parametrize("args, message", [
    (["foo"], 'unknown command "foo" for "pocketbase"'), (["serve", "--bogus"], "unknown flag: --bogus"),
    (["superuser", "create"], "missing email and password arguments"), (["superuser", "upsert", "a@b.co"], "missing email and password arguments"),
    (["superuser", "update", "a", "b", "c"], "missing email and password arguments"),
    (["superuser", "upsert", "bad", "1234567890"], "missing or invalid email address"),
    (["superuser", "delete", "bad"], "invalid or missing email address"), (["superuser", "delete"], "invalid or missing email address"),
    (["superuser", "create", "new@b.co", "short"], "failed to create new superuser account: password: Must be at least 8 character(s)."),
    (["superuser", "upsert", "new@b.co", "short"], "failed to upsert superuser account: password: Must be at least 8 character(s)."),
    (["superuser", "create", "root@example.com", "1234567890"], "failed to create new superuser account: email: Value must be unique."),
    (["superuser", "update", "nobody@b.co", "1234567890"], 'superuser with email "nobody@b.co" doesn\'t exist'),
    (["superuser", "delete", "root@example.com"], 'failed to delete superuser "root@example.com": You can\'t delete the only existing superuser.'),
    (["superuser", "otp", "root@example.com"], "OTP auth is not enabled for the _superusers collection"),
    (["superuser", "otp", "nobody@b.co"], 'superuser with email "nobody@b.co" doesn\'t exist'),
    (["superuser", "ips", "nonsense"], "superuserIPs: (0: invalid IP or CIDR subnet.)."),
])
def test_errors_go_to_stderr_with_exit_code_1(home, args, message):
    done = home.cli(*args)
    assert done.returncode == 1
    assert re.search(rf"^{STAMP}{re.escape(message)}$", done.stderr, re.MULTILINE), done.stderr


@pytest.fixture(scope="module")
def home():
    """A data directory with a superuser, and no server."""
    server = kit.Server()
    yield server
    server.close()


def test_superuser_commands(home):
    for args, said in ((("create", "a@b.co", "1234567890"), 'Successfully created new superuser "a@b.co"!'),
                       (("update", "a@b.co", "abcdefghij"), 'Successfully changed superuser "a@b.co" password!'),
                       (("upsert", "a@b.co", "1234567890"), 'Successfully saved superuser "a@b.co"!'),
                       (("delete", "a@b.co"), 'Successfully deleted superuser "a@b.co"!'),
                       (("delete", "a@b.co"), 'superuser "a@b.co" is missing or already deleted')):
        done = home.cli("superuser", *args)
        assert (done.returncode, done.stderr) == (0, "") and said in done.stdout.splitlines(), done
    assert home.db("select count(*) from _superusers where email = 'a@b.co'") == [(0,)]


def test_superuser_ips(home):
    done = home.cli("superuser", "ips", "127.0.0.1", "10.0.0.0/24")
    assert (done.returncode, done.stdout) == (0, "Successfully updated SuperuserIPs setting:\n├─ 127.0.0.1\n└─ 10.0.0.0/24\n")
    done = home.cli("superuser", "ips")
    assert (done.returncode, done.stdout) == (0, "Successfully cleared SuperuserIPs setting!\n")


def test_superuser_otp(fresh):
    server = fresh()
    changed = server.patch("/api/collections/_superusers", {"otp": {"enabled": True, "duration": 100, "length": 6}}, token=server.su)
    assert changed.status == 200 and changed.json["mfa"]["enabled"] is True    # a code alone never opens a superuser's account
    done = server.cli("superuser", "otp", "root@example.com")
    shape = r'Successfully created OTP for superuser "root@example.com":\n├─ Id:    ([a-z0-9]{15})\n├─ Pass:  (\d{6})\n└─ Valid: 100s\n'
    id, code = re.search(shape, done.stdout).groups()
    assert done.returncode == 0
    answer = server.post("/api/collections/_superusers/auth-with-otp", {"otpId": id, "password": code})
    assert answer.status == 401 and set(answer.json) == {"mfaId"}


def test_superuser_without_subcommand_shows_help(home):
    done = home.cli("superuser")
    assert done.returncode == 0 and "upsert" in done.stdout


def test_command_line_and_server_work_on_the_same_directory(fresh):
    server = fresh()
    token = server.su
    assert server.cli("superuser", "upsert", "second@example.com", "1234567890").returncode == 0
    assert server.login("_superusers", "second@example.com")
    assert server.cli("superuser", "update", "root@example.com", "new-password").returncode == 0
    assert server.get("/api/settings", token=token).status == 401
    assert server.login("_superusers", "root@example.com", "new-password")


def test_origins_flag_limits_cross_origin_access(fresh):
    server = fresh("--origins", "http://a.com,https://*.b.com")
    for origin, allowed in (("http://a.com", True), ("https://x.b.com", True), ("http://evil.com", False), ("https://b.com.evil.com", False)):
        answer = server.get("/api/health", headers={"Origin": origin})
        assert answer.status == 200 and answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)

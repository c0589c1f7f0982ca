"""Mails and what their links and codes do: verification, password reset, e-mail change, one-time passwords, second factors, login alerts."""
import base64
import itertools
import json
import re
import threading

import pytest

import kit
from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal
from helpers_beyond import beyond
from helpers_crowd import crowd
from helpers_crowd import salvo
from helpers_mail import silent_smtp
from helpers_mail import use_smtp
from helpers_mail import wait_until

PASSWORD = "1234567890"
INVALID_FORM = "An error occurred while validating the submitted data."
NO_OTP = "The collection is not configured to allow OTP authentication."
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api(server, mailbox):
    server.settings(meta={"appName": "Tests & Co", "appURL": "http://app.example.com", "senderName": "Töst", "senderAddress": "sender@example.com"})
    mailbox.serve(server)
    server.make("others", type="auth")
    server.make("coded", ["name"], type="auth", otp={"enabled": True, "duration": 180, "length": 8})
    server.make("coded2", type="auth", otp={"enabled": True, "duration": 180, "length": 4})
    server.make("double", ["role"], type="auth", otp={"enabled": True, "duration": 180}, mfa={"enabled": True, "duration": 600, "rule": ""})
    return server


@pytest.fixture
def down(api, mailbox):
    """No mail server listens."""
    use_smtp(api, kit.free_port())
    yield
    mailbox.serve(api)


def new_user(api, collection="users", **fields):
    """An auth record with an address of its own."""
    return api.add_user(f"person{next(_numbers)}@example.com", collection, **{"emailVisibility": True, **fields})


def ask(api, action, body, collection="users", token=None, **options):
    return api.post(f"/api/collections/{collection}/{action}", body, token=token, **options)


def login(api, user, password=PASSWORD, **more):
    return ask(api, "auth-with-password", {"identity": user["email"], "password": password, **more}, user["collectionName"])


def token_of(api, user, password=PASSWORD):
    answer = login(api, user, password)
    assert answer.status == 200, answer
    return answer.json["token"]


def alive(api, token, collection="users"):
    return ask(api, "auth-refresh", None, collection, token).status == 200


def stored(api, user, *columns):
    [row] = api.db(f"select {', '.join(columns)} from {user['collectionName']} where id = ?", user["id"])
    return row


def sql(api, query):
    answer = api.post("/api/sql", {"query": query}, token=api.su)
    assert answer.status == 200, answer


def age(api, table, id, seconds):
    """Makes a row that much older."""
    sql(api, f"UPDATE {table} SET created = strftime('%Y-%m-%d %H:%M:%fZ', created, '-{seconds} seconds') WHERE id = '{id}'")


def nothing_more(api, mailbox, user, count=0):
    """Asserts that somebody got no more than `count` letters, once a letter that was asked for later has come."""
    later = new_user(api)
    assert ask(api, "request-verification", {"email": later["email"]}).status == 204
    mailbox.letter(later["email"])
    assert len(mailbox.to(user["email"])) == count


# ---- verification

def test_verification_by_the_mailed_link(api, mailbox):
    user = new_user(api)
    session = token_of(api, user)
    asked = ask(api, "request-verification", {"email": user["email"]})
    assert (asked.status, asked.body) == (204, b"")
    letter = mailbox.letter(user["email"])
    assert ask(api, "confirm-verification", {"token": letter.token}).status == 204
    assert stored(api, user, "verified") == (1,) and alive(api, session)
    assert ask(api, "confirm-verification", {"token": letter.token}).status == 204    # a second click is no error


def test_a_letter_is_from_the_configured_sender_and_names_the_application(api, mailbox):
    user = new_user(api)
    ask(api, "request-verification", {"email": user["email"]})
    letter = mailbox.letter(user["email"])
    assert (letter.sender, letter.people) == ("sender@example.com", [user["email"]])
    assert letter.message["From"].addresses[0].display_name == "Töst" and letter.message["From"].addresses[0].addr_spec == "sender@example.com"
    assert "Tests & Co" in letter.subject and letter.message["Message-ID"] and letter.message["Date"]
    assert f'href="http://app.example.com/_/#/auth/confirm-verification/{letter.token}"' in letter.html
    assert f"](http://app.example.com/_/#/auth/confirm-verification/{letter.token})" in letter.text


@pytest.mark.parametrize("option, action, body", [
    (("verificationTemplate",), "request-verification", {}),
    (("resetPasswordTemplate",), "request-password-reset", {}),
    (("otp", "emailTemplate"), "request-otp", {}),
])
def test_templates_of_a_collection_are_used_with_their_placeholders(api, mailbox, option, action, body):
    name = f"templated{next(_numbers)}"
    template = {"subject": "{APP_NAME}: {RECORD:title} {UNKNOWN}", "body": "<p>{APP_URL}|{RECORD:title}|{RECORD:count}|{RECORD:ok}|{RECORD:tokenKey}|"
                "{RECORD:password}|{RECORD:nothing}|{TOKEN}{OTP}</p>"}
    change = {option[-1]: template}
    if option[0] == "otp":
        change = {"otp": {"enabled": True, "duration": 180, "length": 8, **change}}
    api.make(name, ["title", "count:number", "ok:bool"], type="auth", **change)
    user = new_user(api, name, title="<b>Ann & Bob</b>", count=1.5, ok=True)
    assert ask(api, action, {"email": user["email"]}, name).status in (200, 204)
    letter = mailbox.letter(user["email"])
    assert letter.subject == "Tests & Co: &lt;b&gt;Ann &amp; Bob&lt;/b&gt; {UNKNOWN}"
    shown = re.search(r"<p>(.*?)</p>", letter.html, re.S)[1].split("|")
    assert shown[:-1] == ["http://app.example.com", "&lt;b&gt;Ann &amp; Bob&lt;/b&gt;", "1.5", "true", "{RECORD:tokenKey}", "{RECORD:password}", "{RECORD:nothing}"]
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\{OTP\}" if option[0] != "otp" else r"\{TOKEN\}\d{8}", shown[-1])


@beyond
def test_a_name_that_is_a_placeholder_brings_no_token_into_the_subject(api, mailbox):
    name = f"templated{next(_numbers)}"
    api.make(name, ["title"], type="auth", verificationTemplate={"subject": "Hi {RECORD:title}", "body": "{RECORD:title} {TOKEN}"})
    user = new_user(api, name, title="{TOKEN} {RECORD:tokenKey}")
    ask(api, "request-verification", {"email": user["email"]}, name)
    assert mailbox.letter(user["email"]).subject == "Hi {TOKEN} {RECORD:tokenKey}"


@beyond
def test_a_second_verification_mail_within_two_minutes_is_not_sent(api, mailbox):
    user = new_user(api)
    for _ in range(3):
        assert ask(api, "request-verification", {"email": user["email"]}).status == 204
        mailbox.letter(user["email"])
    nothing_more(api, mailbox, user, 1)


@beyond
def test_requests_at_the_same_moment_send_one_verification_mail(api, mailbox):
    user = new_user(api)
    answers = salvo(api, "POST", "/api/collections/users/request-verification", [{"email": user["email"]}] * 8)
    assert [answer.status for answer in answers] == [204] * 8
    mailbox.letter(user["email"])
    nothing_more(api, mailbox, user, 1)


def test_verified_records_get_no_verification_mail(api, mailbox):
    user = new_user(api, verified=True)
    assert ask(api, "request-verification", {"email": user["email"]}).status == 204
    nothing_more(api, mailbox, user)


def test_superusers_need_no_verification(api):
    for action, body in (("request-verification", {"email": kit.SUPERUSER[0]}), ("confirm-verification", {"token": "x"})):
        assert ask(api, action, body, "_superusers").json == envelope(400, "All superusers are verified by default.")


def test_a_verification_without_password_login_takes_the_password_away(api, mailbox):
    name = f"nopassword{next(_numbers)}"
    api.make(name, type="auth", passwordAuth={"enabled": False, "identityFields": []}, otp={"enabled": True, "duration": 180, "length": 8})
    user = new_user(api, name)
    before = stored(api, user, "password", "tokenKey")
    ask(api, "request-verification", {"email": user["email"]}, name)
    token = mailbox.letter(user["email"]).token
    assert ask(api, "confirm-verification", {"token": token}, name).status == 204
    after = stored(api, user, "password", "tokenKey")
    assert before[0] != after[0] and before[1] != after[1]
    assert refusal(ask(api, "confirm-verification", {"token": token}, name)) == (400, {"token": "validation_invalid_token"})


def token_saying(**claims):
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"


@pytest.mark.parametrize("body, error", [
    ({}, "validation_required"), ({"token": "garbage"}, "validation_invalid_token_claims"), ({"token": "a.b.c"}, "validation_invalid_token_claims"),
    ({"token": token_saying(id="x", collectionId="users", type="verification")}, "validation_invalid_token_claims"),
    ({"token": token_saying(email=5)}, "validation_invalid_token_claims"), ({"token": token_saying(email="a@b.co")}, "validation_invalid_token"),
    ({"token": token_saying(email="a@b.co", exp="soon", id="x", collectionId="users", type="verification")}, "validation_invalid_token"),
])
def test_refused_verification_tokens(api, body, error):
    refused = ask(api, "confirm-verification", body)
    assert refusal(refused) == (400, {"token": error}) and refused.json["message"] == INVALID_FORM


def test_a_verification_token_is_for_its_own_collection(api, mailbox):
    user = new_user(api)
    ask(api, "request-verification", {"email": user["email"]})
    token = mailbox.letter(user["email"]).token
    assert refusal(ask(api, "confirm-verification", {"token": token}, "others")) == (400, {"token": "validation_token_collection_mismatch"})


def test_a_verification_token_dies_with_its_address(api, mailbox):
    user = new_user(api)
    ask(api, "request-verification", {"email": user["email"]})
    token = mailbox.letter(user["email"]).token
    api.patch(records("users", user["id"]), {"email": f"moved{user['id']}@example.com"}, token=api.su)
    assert refusal(ask(api, "confirm-verification", {"token": token})) == (400, {"token": "validation_invalid_token"})
    assert stored(api, user, "verified") == (0,)


# ---- password reset

def reset(token, password="new-password", confirm=None):
    return {"token": token, "password": password, "passwordConfirm": password if confirm is None else confirm}


def reset_token(api, mailbox, user):
    assert ask(api, "request-password-reset", {"email": user["email"]}, user["collectionName"]).status == 204
    return mailbox.letter(user["email"]).token


def test_password_reset_by_the_mailed_link(api, mailbox):
    user = new_user(api)
    session = token_of(api, user)
    token = reset_token(api, mailbox, user)
    assert "/_/#/auth/confirm-password-reset/" in mailbox.letter(user["email"]).html
    assert ask(api, "confirm-password-reset", reset(token)).status == 204
    assert login(api, user).status == 400 and login(api, user, "new-password").status == 200
    assert not alive(api, session)
    assert stored(api, user, "verified") == (1,)    # who reads the mail owns the address


def test_a_reset_token_works_once(api, mailbox):
    user = new_user(api)
    token = reset_token(api, mailbox, user)
    assert ask(api, "confirm-password-reset", reset(token)).status == 204
    assert refusal(ask(api, "confirm-password-reset", reset(token, "yet-another"))) == (400, {"token": "validation_invalid_token"})


@beyond
def test_case_25_a_reset_token_works_once_even_at_the_same_moment(api, mailbox):
    user = new_user(api)
    token = reset_token(api, mailbox, user)
    passwords = [f"password-{number}" for number in range(8)]
    answers = salvo(api, "POST", "/api/collections/users/confirm-password-reset", [reset(token, password) for password in passwords])
    assert sorted(answer.status for answer in answers) == [204] + [400] * 7
    assert {refusal(answer)[1].get("token") for answer in answers if answer.status == 400} == {"validation_invalid_token"}
    winner = passwords[[answer.status for answer in answers].index(204)]
    assert login(api, user, winner).status == 200


@pytest.mark.parametrize("change, errors", [
    ({"token": ""}, {"token": "validation_required"}),
    ({"token": "garbage"}, {"token": "validation_invalid_token"}),
    ({"password": "short", "passwordConfirm": "short"}, {"password": "validation_length_out_of_range"}),
    ({"password": "x" * 256, "passwordConfirm": "x" * 256}, {"password": "validation_length_out_of_range"}),
    ({"passwordConfirm": "different"}, {"passwordConfirm": "validation_values_mismatch"}),
    ({"passwordConfirm": ""}, {"passwordConfirm": "validation_required"}),
    ({"password": "x" * 72, "passwordConfirm": "x" * 72}, {"password": "validation_max_text_constraint"}),
    ({"token": "", "password": "", "passwordConfirm": ""}, {"token": "validation_required", "password": "validation_required", "passwordConfirm": "validation_required"}),
])
def test_refused_resets_leave_the_token_alive(api, mailbox, change, errors):
    user = new_user(api)
    token = reset_token(api, mailbox, user)
    assert refusal(ask(api, "confirm-password-reset", {**reset(token), **change})) == (400, errors)
    assert login(api, user).status == 200
    assert ask(api, "confirm-password-reset", reset(token)).status == 204


def test_a_reset_token_is_for_its_own_collection(api, mailbox):
    token = reset_token(api, mailbox, new_user(api))
    assert refusal(ask(api, "confirm-password-reset", reset(token), "others")) == (400, {"token": "validation_token_collection_mismatch"})


@beyond
def test_a_second_reset_mail_within_two_minutes_is_not_sent(api, mailbox):
    user = new_user(api)
    for _ in range(3):
        assert ask(api, "request-password-reset", {"email": user["email"]}).status == 204
        mailbox.letter(user["email"])
    nothing_more(api, mailbox, user, 1)


def test_after_a_reset_the_next_one_may_be_asked_for_at_once(api, mailbox):
    user = new_user(api)
    ask(api, "confirm-password-reset", reset(reset_token(api, mailbox, user)))
    ask(api, "request-password-reset", {"email": user["email"]})
    assert ask(api, "confirm-password-reset", reset(mailbox.letter(user["email"], 2).token, "third-password")).status == 204


def test_a_reset_mail_that_was_not_delivered_does_not_count(api, mailbox):
    user = new_user(api)
    mailbox.refusing, before = True, mailbox.refused
    try:
        assert ask(api, "request-password-reset", {"email": user["email"]}).status == 204
        mailbox.wait_refused(before + 1)
    finally:
        mailbox.refusing = False

    def delivered():
        ask(api, "request-password-reset", {"email": user["email"]})
        return mailbox.to(user["email"])
    wait_until(delivered)    # the failure is noticed a moment after the refusal was sent


def test_superusers_reset_their_password_by_mail(api, mailbox):
    root = new_user(api, "_superusers")
    assert ask(api, "confirm-password-reset", reset(reset_token(api, mailbox, root)), "_superusers").status == 204
    assert login(api, root, "new-password").status == 200


def test_collections_without_password_login_have_no_reset(api):
    name = f"nopassword{next(_numbers)}"
    api.make(name, type="auth", passwordAuth={"enabled": False, "identityFields": []})
    assert ask(api, "request-password-reset", {"email": "a@b.co"}, name).json == envelope(400, "The collection is not configured to allow password authentication.")


# ---- e-mail change

def change_token(api, mailbox, user, address, session=None):
    session = session or token_of(api, user)
    assert ask(api, "request-email-change", {"newEmail": address}, user["collectionName"], session).status == 204
    return mailbox.letter(address).token


def test_email_change_by_a_link_sent_to_the_new_address(api, mailbox):
    user = new_user(api)
    session, address = token_of(api, user), f"new{user['id']}@example.com"
    token = change_token(api, mailbox, user, address, session)
    assert mailbox.to(user["email"]) == [] and "/_/#/auth/confirm-email-change/" in mailbox.letter(address).html
    assert stored(api, user, "email") == (user["email"],)
    assert ask(api, "confirm-email-change", {"token": token, "password": PASSWORD}).status == 204
    assert stored(api, user, "email", "verified") == (address, 1)
    assert not alive(api, session)
    assert login(api, user).status == 400 and login(api, {**user, "email": address}).status == 200


@pytest.mark.parametrize("body, errors", [
    ({"password": "wrong-password"}, {"password": "validation_invalid_password"}),
    ({"password": ""}, {"password": "validation_required"}),
    ({"password": "x" * 101}, {"password": "validation_length_out_of_range"}),
    ({"token": ""}, {"token": "validation_required", "password": "validation_invalid_password"}),
    ({"token": "garbage"}, {"token": "validation_invalid_token_payload", "password": "validation_invalid_password"}),
])
def test_refused_email_changes(api, mailbox, body, errors):
    user = new_user(api)
    token = change_token(api, mailbox, user, f"new{user['id']}@example.com")
    assert refusal(ask(api, "confirm-email-change", {"token": token, "password": PASSWORD, **body})) == (400, errors)
    assert stored(api, user, "email") == (user["email"],)


def test_an_email_change_token_works_once(api, mailbox):
    user = new_user(api)
    token = change_token(api, mailbox, user, f"new{user['id']}@example.com")
    assert ask(api, "confirm-email-change", {"token": token, "password": PASSWORD}).status == 204
    assert refusal(ask(api, "confirm-email-change", {"token": token, "password": PASSWORD}))[1]["token"] == "validation_invalid_token"


@beyond
def test_case_25_of_two_email_changes_at_the_same_moment_one_wins(api, mailbox):
    """Eight requests, two tokens of one record: whichever is first ends the other and itself."""
    user = new_user(api)
    session = token_of(api, user)
    addresses = [f"{letter}{user['id']}@example.com" for letter in "ab"]
    tokens = [change_token(api, mailbox, user, address, session) for address in addresses]
    answers = salvo(api, "POST", "/api/collections/users/confirm-email-change", [{"token": token, "password": PASSWORD} for token in tokens * 4])
    assert sorted(answer.status for answer in answers) == [204] + [400] * 7
    assert {refusal(answer)[1].get("token") for answer in answers if answer.status == 400} == {"validation_invalid_token"}
    assert stored(api, user, "email") == (addresses[[answer.status for answer in answers].index(204) % 2],)


def test_an_address_taken_meanwhile_is_refused(api, mailbox):
    user, address = new_user(api), f"wanted{next(_numbers)}@example.com"
    token = change_token(api, mailbox, user, address)
    api.add_user(address)
    refused = ask(api, "confirm-email-change", {"token": token, "password": PASSWORD})
    assert refusal(refused)[1]["token"] == "validation_invalid_token_email" and stored(api, user, "email") == (user["email"],)


def test_one_address_wanted_by_many_goes_to_one(api, mailbox):
    users, address = [new_user(api) for _ in range(4)], f"wanted{next(_numbers)}@example.com"
    tokens = []
    for number, user in enumerate(users):
        ask(api, "request-email-change", {"newEmail": address}, token=token_of(api, user))
        tokens.append(mailbox.letter(address, number + 1).token)
    answers = salvo(api, "POST", "/api/collections/users/confirm-email-change", [{"token": token, "password": PASSWORD} for token in tokens])
    assert sorted(answer.status for answer in answers) == [204, 400, 400, 400]
    assert api.db("select count(*) from users where email = ?", address) == [(1,)]


@pytest.mark.parametrize("address, error", [
    ("", "validation_required"), ("bad", "validation_is_email"), ("own", "validation_not_in_invalid"), ("taken", "validation_invalid_new_email"),
    ("x" * 251 + "@b.co", "validation_length_out_of_range"),
])
def test_new_addresses_that_are_refused(api, address, error):
    user, other = new_user(api), new_user(api)
    address = {"own": user["email"], "taken": other["email"]}.get(address, address)
    assert refusal(ask(api, "request-email-change", {"newEmail": address}, token=token_of(api, user))) == (400, {"newEmail": error})


def test_email_change_is_for_the_signed_in_of_that_collection(api):
    other = new_user(api, "others")
    assert ask(api, "request-email-change", {"newEmail": "a@b.co"}).status == 401
    assert ask(api, "request-email-change", {"newEmail": "a@b.co"}, token=token_of(api, other)).status == 403


def test_superusers_change_their_address_directly(api):
    for action, body in (("request-email-change", {"newEmail": "a@b.co"}), ("confirm-email-change", {"token": "x", "password": "y"})):
        assert ask(api, action, body, "_superusers", api.su).json == envelope(400, "All superusers can change their emails directly.")


# ---- no enumeration

@pytest.mark.parametrize("action, collection", [("request-verification", "users"), ("request-password-reset", "users"), ("request-otp", "coded")])
def test_case_24_answers_do_not_tell_whether_an_address_is_known(api, action, collection):
    known, verified = new_user(api, collection), new_user(api, collection, verified=True)
    emails = (known["email"], known["email"], verified["email"], "nobody@example.com", "NOBODY@example.com")
    answers = [ask(api, action, {"email": email}, collection) for email in emails]
    shapes = [(answer.status, re.sub(r"[a-z0-9]{15}", "ID", answer.text), sorted(name for name in answer.headers)) for answer in answers]
    assert all(shape == shapes[0] for shape in shapes) and shapes[0][0] in (200, 204)


@pytest.mark.parametrize("action", ["request-verification", "request-password-reset", "request-otp"])
@pytest.mark.parametrize("email, error", [("", "validation_required"), ("bad", "validation_is_email"), ("x" * 251 + "@b.co", "validation_length_out_of_range")])
def test_addresses_that_are_none(api, action, email, error):
    assert refusal(ask(api, action, {"email": email}, "coded")) == (400, {"email": error})


def test_case_24_wrong_and_unknown_one_time_passwords_get_the_same_answer(api, mailbox):
    user = new_user(api, "coded")
    real = ask(api, "request-otp", {"email": user["email"]}, "coded").json["otpId"]
    decoy = ask(api, "request-otp", {"email": "nobody@example.com"}, "coded").json["otpId"]
    refused = [ask(api, "auth-with-otp", {"otpId": id, "password": "wrong"}, "coded") for id in (real, decoy, "x" * 15)]
    assert [answer.json for answer in refused] == [envelope(400, "Invalid or expired OTP.")] * 3


# ---- no mail server

@pytest.mark.parametrize("action, collection, status", [("request-verification", "users", 204), ("request-password-reset", "users", 204), ("request-otp", "coded", 200)])
def test_without_a_mail_server_requests_succeed(api, down, action, collection, status):
    assert ask(api, action, {"email": new_user(api, collection)["email"]}, collection).status == status


def test_without_a_mail_server_an_email_change_is_refused(api, down):
    token = token_of(api, new_user(api))
    assert ask(api, "request-email-change", {"newEmail": "new@example.com"}, token=token).json == envelope(400, "Failed to request email change.")


def test_a_one_time_password_that_was_not_delivered_is_taken_back(api, down):
    user = new_user(api, "coded")
    ask(api, "request-otp", {"email": user["email"]}, "coded")
    wait_until(lambda: api.db("select count(*) from _otps where recordRef = ?", user["id"]) == [(0,)])


@pytest.mark.parametrize("action, collection, status", [("request-verification", "users", 204), ("request-password-reset", "users", 204), ("request-otp", "coded", 200)])
def test_case_35_a_mail_server_that_never_answers_holds_no_request_up(api, mailbox, action, collection, status):
    user = new_user(api, collection)
    with silent_smtp(api) as hang_up:
        assert ask(api, action, {"email": user["email"]}, collection).status == status    # answered, and nobody has hung up yet
        hang_up()
    mailbox.serve(api)


def test_case_35_who_waits_for_a_silent_mail_server_waits_alone(api, mailbox):
    token, waited = token_of(api, new_user(api)), []
    with silent_smtp(api) as hang_up:
        waiting = threading.Thread(target=lambda: waited.append(ask(api, "request-email-change", {"newEmail": "new@example.com"}, token=token)))
        waiting.start()
        assert api.get("/api/health").status == 200 and token_of(api, new_user(api))
        assert waited == []
        hang_up()
        waiting.join(kit.PATIENCE)
    mailbox.serve(api)
    assert waited[0].json == envelope(400, "Failed to request email change.")


# ---- one-time passwords

def request_code(api, mailbox, user, number=1):
    """(id, code) of a one-time password that came by mail."""
    answer = ask(api, "request-otp", {"email": user["email"]}, user["collectionName"])
    assert answer.status == 200 and list(answer.json) == ["otpId"], answer
    return answer.json["otpId"], mailbox.letter(user["email"], number).code


def use_code(api, id, code, collection="coded", **more):
    return ask(api, "auth-with-otp", {"otpId": id, "password": code, **more}, collection)


def wait_sent(api, id):
    """Until the server has noted that the code was delivered."""
    wait_until(lambda: api.db("select sentTo from _otps where id = ?", id) not in ([], [("",)]))


def test_login_with_a_mailed_code(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    assert re.fullmatch(r"\d{8}", code)
    answer = use_code(api, id, code)
    assert answer.status == 200 and list(answer.json) == ["record", "token"] and answer.json["record"]["id"] == user["id"]
    assert alive(api, answer.json["token"], "coded") and login(api, user).status == 200


def test_a_code_is_stored_as_a_hash_and_shown_to_nobody(api, mailbox):
    user = new_user(api, "coded")
    id, code = request_code(api, mailbox, user)
    [(hashed,)] = api.db("select password from _otps where id = ?", id)
    assert hashed.startswith("$2a$08$") and code not in hashed
    shown = api.get(records("_otps", id), token=token_of(api, user)).json
    assert {"password", "sentTo"}.isdisjoint(shown) and shown["recordRef"] == user["id"]
    assert api.get(records("_otps", id)).status == api.get(records("_otps", id), token=token_of(api, new_user(api, "coded"))).status == 404


def test_a_mailed_code_verifies_the_address_and_ends_what_was_before(api, mailbox):
    """Who made the account before its owner came by mail must not stay in it."""
    user = new_user(api, "coded")
    session = token_of(api, user)
    id, code = request_code(api, mailbox, user)
    wait_sent(api, id)
    answer = use_code(api, id, code)
    assert answer.status == 200 and answer.json["record"]["verified"] is True
    assert login(api, user).status == 400 and not alive(api, session, "coded")
    assert alive(api, answer.json["token"], "coded")


def test_case_25_a_code_works_once(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    assert use_code(api, id, code).status == 200
    assert use_code(api, id, code).json == envelope(400, "Invalid or expired OTP.")


@beyond
def test_case_25_a_code_works_once_even_at_the_same_moment(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    answers = salvo(api, "POST", "/api/collections/coded/auth-with-otp", [{"otpId": id, "password": code}] * 8)
    statuses = [answer.status for answer in answers]
    assert statuses.count(200) == 1 and set(statuses) == {200, 400, 429}    # five of eight pass the limit of tries


def test_case_25_a_code_of_another_collection_is_refused(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    assert use_code(api, id, code, "coded2").json == envelope(400, "Invalid or expired OTP.")
    assert use_code(api, id, code).status == 200


def test_case_25_a_code_of_another_record_is_refused(api, mailbox):
    one, two = (new_user(api, "coded", verified=True) for _ in range(2))
    (id, _), (_, code) = request_code(api, mailbox, one), request_code(api, mailbox, two)
    assert use_code(api, id, code).json == envelope(400, "Invalid or expired OTP.")


@pytest.mark.parametrize("seconds, status", [(170, 200), (181, 400)])
def test_case_25_a_code_expires(api, mailbox, seconds, status):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    wait_sent(api, id)
    age(api, "_otps", id, seconds)
    assert use_code(api, id, code).status == status


def test_case_25_the_sixth_guess_is_refused_whatever_it_is(api, mailbox):
    user, other = (new_user(api, "coded", verified=True) for _ in range(2))
    id, code = request_code(api, mailbox, user)
    assert [use_code(api, id, f"wrong{number}").status for number in range(5)] == [400] * 5
    late = use_code(api, id, code)
    assert late.json == envelope(429, "Too many attempts, please try again later with a new OTP.")
    assert use_code(api, *request_code(api, mailbox, user, 2)).status == 429    # a new code brings no new tries
    assert use_code(api, *request_code(api, mailbox, other)).status == 200


def test_case_25_guesses_at_the_same_moment_count_too(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, _ = request_code(api, mailbox, user)
    answers = salvo(api, "POST", "/api/collections/coded/auth-with-otp", [{"otpId": id, "password": f"wrong{number}"} for number in range(12)])
    assert sorted(answer.status for answer in answers) == [400] * 5 + [429] * 7


def test_codes_beyond_ten_are_not_mailed(api, mailbox):
    user = new_user(api, "coded")
    ids = [ask(api, "request-otp", {"email": user["email"]}, "coded").json["otpId"] for _ in range(12)]
    assert len(set(ids[:10])) == 10 and ids[10] in ids[:10] and ids[11] in ids[:10]
    mailbox.letter(user["email"], 10)
    nothing_more(api, mailbox, user, 10)


@beyond
def test_codes_beyond_ten_are_not_mailed_even_when_asked_for_at_the_same_moment(api, mailbox):
    user = new_user(api, "coded")
    answers = salvo(api, "POST", "/api/collections/coded/request-otp", [{"email": user["email"]}] * 16)
    assert [answer.status for answer in answers] == [200] * 16
    assert api.db("select count(*) from _otps where recordRef = ?", user["id"]) == [(10,)]
    mailbox.letter(user["email"], 10)
    nothing_more(api, mailbox, user, 10)


def test_a_new_password_ends_the_codes(api, mailbox):
    user = new_user(api, "coded", verified=True)
    id, code = request_code(api, mailbox, user)
    wait_sent(api, id)
    api.patch(records("coded", user["id"]), {"password": "new-password", "passwordConfirm": "new-password"}, token=api.su)
    assert use_code(api, id, code).status == 400 and api.db("select count(*) from _otps where recordRef = ?", user["id"]) == [(0,)]


@pytest.mark.parametrize("body, errors", [
    ({}, {"otpId": "validation_required", "password": "validation_required"}),
    ({"otpId": "x" * 256, "password": "x" * 72}, {"otpId": "validation_length_out_of_range", "password": "validation_length_out_of_range"}),
])
def test_refused_forms_of_a_code(api, body, errors):
    assert refusal(ask(api, "auth-with-otp", body, "coded")) == (400, errors)


@pytest.mark.parametrize("action", ["request-otp", "auth-with-otp"])
def test_collections_without_codes(api, action):
    assert ask(api, action, {}).json == envelope(403, NO_OTP)


def test_expired_codes_and_sessions_are_swept_by_their_jobs(api, mailbox):
    user, other = new_user(api, "coded"), new_user(api, "double")
    old, _ = request_code(api, mailbox, user)
    young, _ = request_code(api, mailbox, user, 2)
    session = login(api, other).json["mfaId"]
    wait_sent(api, old)
    age(api, "_otps", old, 1000)
    age(api, "_mfas", session, 1000)
    for job in ("__pbOTPCleanup__", "__pbMFACleanup__"):
        assert api.post(f"/api/crons/{job}", token=api.su).status == 204
    wait_until(lambda: not api.db("select 1 from _otps where id = ?", old) and not api.db("select 1 from _mfas where id = ?", session))
    assert api.db("select 1 from _otps where id = ?", young) == [(1,)]


# ---- second factor

def first_factor(api, user):
    answer = login(api, user)
    assert answer.status == 401 and list(answer.json) == ["mfaId"], answer
    return answer.json["mfaId"]


@pytest.mark.parametrize("where", ["query", "body"])
def test_password_then_code(api, mailbox, where):
    user = new_user(api, "double")
    session = first_factor(api, user)
    id, code = request_code(api, mailbox, user)
    path = "auth-with-otp" + (f"?mfaId={session}" if where == "query" else "?mfaId=")
    answer = ask(api, path, {"otpId": id, "password": code, **({"mfaId": session} if where == "body" else {})}, "double")
    assert answer.status == 200 and alive(api, answer.json["token"], "double")
    assert api.db("select count(*) from _mfas where recordRef = ?", user["id"]) == [(0,)]


def test_code_then_password(api, mailbox):
    user = new_user(api, "double")
    first = use_code(api, *request_code(api, mailbox, user), "double")
    assert first.status == 401
    assert login(api, user, mfaId=first.json["mfaId"]).status == 200    # the first factor did not change the password


def test_one_factor_gives_no_token(api, mailbox):
    user = new_user(api, "double")
    for answer in (login(api, user), use_code(api, *request_code(api, mailbox, user), "double")):
        assert answer.status == 401 and set(answer.json) == {"mfaId"}


def test_case_25_the_same_method_is_no_second_factor(api):
    user = new_user(api, "double")
    assert login(api, user, mfaId=first_factor(api, user)).json == envelope(400, "A different authentication method is required.")


def test_case_25_a_session_is_for_its_own_record(api, mailbox):
    one, two = (new_user(api, "double") for _ in range(2))
    session = first_factor(api, one)
    assert use_code(api, *request_code(api, mailbox, two), "double", mfaId=session).json == envelope(400, "Invalid MFA session.")


def test_case_25_a_session_works_once(api, mailbox):
    user = new_user(api, "double")
    session = first_factor(api, user)
    assert use_code(api, *request_code(api, mailbox, user), "double", mfaId=session).status == 200
    again = use_code(api, *request_code(api, mailbox, user, 2), "double", mfaId=session)
    assert again.json == envelope(400, "Invalid or expired MFA session.")


def test_case_25_a_session_works_once_even_at_the_same_moment(api, mailbox):
    user = new_user(api, "double")
    session = use_code(api, *request_code(api, mailbox, user), "double").json["mfaId"]
    body = {"identity": user["email"], "password": PASSWORD, "mfaId": session}
    answers = salvo(api, "POST", "/api/collections/double/auth-with-password", [body] * 8)
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_case_25_a_session_expires(api, mailbox):
    user = new_user(api, "double")
    session = first_factor(api, user)
    age(api, "_mfas", session, 601)
    late = use_code(api, *request_code(api, mailbox, user), "double", mfaId=session)
    assert late.json == envelope(400, "Invalid or expired MFA session.")
    assert api.db("select 1 from _mfas where id = ?", session) == []


def test_a_wrong_second_factor_leaves_the_session_alive(api, mailbox):
    user = new_user(api, "double")
    session = first_factor(api, user)
    id, code = request_code(api, mailbox, user)
    assert use_code(api, id, "wrong", "double", mfaId=session).status == 400
    assert use_code(api, id, code, "double", mfaId=session).status == 200


def test_a_session_alone_opens_nothing(api):
    session = first_factor(api, new_user(api, "double"))
    assert api.get(records("_mfas", session)).status == 404
    assert not alive(api, session, "double")


def test_a_rule_says_who_needs_a_second_factor(api):
    name = f"partly{next(_numbers)}"
    api.make(name, ["role"], type="auth", otp={"enabled": True, "duration": 180, "length": 8}, mfa={"enabled": True, "duration": 600, "rule": "role = 'admin'"})
    assert login(api, new_user(api, name, role="admin")).status == 401
    assert login(api, new_user(api, name, role="reader")).status == 200


# ---- where somebody signed in from

def login_from(api, user, agent):
    return ask(api, "auth-with-password", {"identity": user["email"], "password": PASSWORD}, user["collectionName"], headers={"User-Agent": agent})


def origins(api, user):
    return api.get(records("_authOrigins"), token=api.su, params={"filter": f"recordRef = '{user['id']}'", "sort": "created"}).json["items"]


def test_a_new_place_is_announced_and_the_first_is_not(api, mailbox):
    user = new_user(api)
    assert login_from(api, user, "First/1.0").status == login_from(api, user, "First/1.0").status == 200
    assert len(origins(api, user)) == 1 and mailbox.to(user["email"]) == []
    assert login_from(api, user, "<b>Second</b> & 'co'").status == 200
    [letter] = mailbox.to(user["email"])    # a login waits for its alert
    assert "127.0.0.1 &lt;b&gt;Second&lt;/b&gt; &amp; &#39;co&#39;" in letter.html and "<b>Second</b>" not in letter.html
    assert login_from(api, user, "First/1.0").status == login_from(api, user, "<b>Second</b> & 'co'").status == 200
    assert len(mailbox.to(user["email"])) == 1 and len(origins(api, user)) == 2


def test_five_places_are_remembered(api, mailbox):
    user = new_user(api)
    for number in range(7):
        login_from(api, user, f"Agent/{number}")
    assert len(origins(api, user)) == 5 and len(mailbox.to(user["email"])) == 6
    login_from(api, user, "Agent/6")
    assert len(mailbox.to(user["email"])) == 6
    login_from(api, user, "Agent/0")    # forgotten, so it is new
    assert len(mailbox.to(user["email"])) == 7


def test_without_a_mail_server_logins_from_new_places_succeed_and_stay_new(api, down):
    user = new_user(api)
    assert login_from(api, user, "First").status == login_from(api, user, "Second").status == 200
    assert len(origins(api, user)) == 1


def test_first_logins_at_the_same_moment_all_succeed(api):
    user = new_user(api)
    answers = salvo(api, "POST", "/api/collections/users/auth-with-password", [{"identity": user["email"], "password": PASSWORD}] * 6)
    assert [answer.status for answer in answers] == [200] * 6 and len(origins(api, user)) == 1


@beyond
def test_logins_from_many_places_at_the_same_moment_keep_five(api):
    user = new_user(api)
    answers = crowd(8, lambda number: login_from(api, user, f"Crowd/{number}"))
    assert [answer.status for answer in answers] == [200] * 8
    assert len(origins(api, user)) <= 5


def test_alerts_can_be_switched_off(api, mailbox):
    name = f"quiet{next(_numbers)}"
    template = api.get("/api/collections/users", token=api.su).json["authAlert"]["emailTemplate"]
    api.make(name, type="auth", authAlert={"enabled": False, "emailTemplate": template})
    user = new_user(api, name)
    assert login_from(api, user, "First").status == login_from(api, user, "Second").status == 200
    assert origins(api, user) == [] and mailbox.to(user["email"]) == []


def test_a_new_password_forgets_the_places(api):
    user = new_user(api)
    login_from(api, user, "First")
    api.patch(records("users", user["id"]), {"password": "new-password", "passwordConfirm": "new-password"}, token=api.su)
    assert origins(api, user) == []


def test_places_are_seen_and_removed_by_their_owner_only(api):
    user, other = new_user(api), new_user(api)
    token, foreign = token_of(api, user), token_of(api, other)
    [place] = origins(api, user)
    assert [item["id"] for item in api.get(records("_authOrigins"), token=token).json["items"]] == [place["id"]]
    assert api.get(records("_authOrigins")).json["totalItems"] == 0
    for stranger in (foreign, None):
        assert api.delete(records("_authOrigins", place["id"]), token=stranger).status == 404
    assert api.patch(records("_authOrigins", place["id"]), {"recordRef": other["id"]}, token=token).status == 403
    assert api.delete(records("_authOrigins", place["id"]), token=token).status == 204


@pytest.mark.parametrize("agent", [b"caf\xc3\xa9", b"\xff\xfe broken", b"", b"x" * 5000, "☃".encode() * 100])
def test_odd_user_agents_sign_in_like_others(api, agent):
    user = new_user(api)
    body = b'{"identity":"%s","password":"%s"}' % (user["email"].encode(), PASSWORD.encode())
    head = b"POST /api/collections/users/auth-with-password HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = api.raw(head + b"User-Agent: " + agent + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 200") and len(origins(api, user)) == 1


# ---- test mails

@pytest.mark.parametrize("template, shown", [
    ("verification", r"/confirm-verification/[\w.-]+"), ("password-reset", r"/confirm-password-reset/[\w.-]+"),
    ("email-change", r"/confirm-email-change/[\w.-]+"), ("otp", "<strong>123456</strong>"), ("login-alert", "TEST_IP TEST_USER_AGENT"),
])
def test_a_test_mail_shows_a_template(api, mailbox, template, shown):
    address = f"test{next(_numbers)}@example.com"
    assert api.post("/api/settings/test/email", {"email": address, "template": template, "collection": "users"}, token=api.su).status == 204
    [letter] = mailbox.to(address)    # it is sent within the request
    assert re.search(shown, letter.html)


@pytest.mark.parametrize("body, errors", [
    ({}, {"email": "validation_required", "template": "validation_required"}),
    ({"email": "bad", "template": "otp"}, {"email": "validation_is_email"}),
    ({"email": "a@b.co", "template": "nope"}, {"template": "validation_in_invalid"}),
    ({"email": "a@b.co", "template": "otp", "collection": "nope"}, {"collection": "validation_invalid_auth_collection"}),
])
def test_refused_test_mails(api, body, errors):
    assert refusal(api.post("/api/settings/test/email", body, token=api.su)) == (400, errors)


def test_a_test_mail_says_what_went_wrong(api, down):
    refused = api.post("/api/settings/test/email", {"email": "a@b.co", "template": "otp"}, token=api.su)
    assert refused.status == 400 and re.match(r"Failed to send the test email. Raw error: \ndial tcp 127.0.0.1:\d+: connect: connection refused", refused.json["message"])


def test_test_mails_are_for_superusers(api):
    body = {"email": "a@b.co", "template": "otp"}
    assert api.post("/api/settings/test/email", body).status == 401
    assert api.post("/api/settings/test/email", body, token=token_of(api, new_user(api))).status == 403


def test_a_token_of_a_test_mail_opens_nothing(api, mailbox):
    user = new_user(api)
    address = f"test{next(_numbers)}@example.com"
    api.post("/api/settings/test/email", {"email": address, "template": "password-reset", "collection": "users"}, token=api.su)
    assert refusal(ask(api, "confirm-password-reset", reset(mailbox.letter(address).token))) == (400, {"token": "validation_invalid_token"})
    assert login(api, user).status == 200

"""Short ways to look at answers of the API."""


def records(collection, id=None):
    """The path of a collection's records, or of one of them."""
    return f"/api/collections/{collection}/records" + (f"/{id}" if id else "")


def refusal(response):
    """(status, {field: code}) of an error answer; field names of nested errors are joined by dots."""
    return response.status, dict(_codes((response.json or {}).get("data") or {}))


def _codes(data, prefix=""):
    for name, item in data.items():
        if isinstance(item.get("code"), str):
            yield prefix + name, item["code"]
        else:
            yield from _codes(item, f"{prefix}{name}.")


def envelope(status, message, data=None):
    return {"data": data or {}, "message": message, "status": status}


def items(response, field="id"):
    """One field of every record of a list answer."""
    assert response.status == 200, response
    return [item.get(field) for item in response.json["items"]]


BAD_REQUEST = "Something went wrong while processing your request."
NOT_FOUND = "The requested resource wasn't found."
ONLY_SUPERUSERS = "Only superusers can perform this action."

// The official JavaScript SDK against a running server. Started by tests/test_js_sdk.py, which gives PB_URL and a superuser.
import assert from "node:assert/strict"
import { before, describe, test } from "node:test"
import { EventSource } from "eventsource"
import PocketBase, { ClientResponseError } from "pocketbase"

globalThis.EventSource = EventSource // node has none of its own

const [EMAIL, PASSWORD] = ["root@example.com", "1234567890"]
const client = () => new PocketBase(process.env.PB_URL).autoCancellation(false)
const root = client()
const guest = client()

const failure = async (promise) => {
    const error = await promise.then(() => assert.fail("expected an error"), (thrown) => thrown)
    assert.ok(error instanceof ClientResponseError, String(error))
    return error
}

before(async () => {
    await root.collection("_superusers").authWithPassword(EMAIL, PASSWORD)
    await root.settings.update({ batch: { enabled: true } })
    const open = { listRule: "", viewRule: "", createRule: "", updateRule: "", deleteRule: "" }
    const authors = await root.collections.create({
        ...open, name: "authors", type: "base",
        fields: [{ name: "name", type: "text", required: true }],
    })
    await root.collections.create({
        ...open, name: "posts", type: "base",
        fields: [
            { name: "title", type: "text", required: true, max: 40 },
            { name: "score", type: "number" },
            { name: "tags", type: "select", maxSelect: 3, values: ["red", "green", "blue"] },
            { name: "author", type: "relation", collectionId: authors.id, maxSelect: 1 },
            { name: "doc", type: "file", maxSelect: 1 },
            { name: "created", type: "autodate", onCreate: true },
        ],
    })
})

describe("superuser", () => {
    test("log-in fills the auth store", () => {
        assert.ok(root.authStore.isValid)
        assert.ok(root.authStore.isSuperuser)
        assert.equal(root.authStore.record.email, EMAIL)
    })
    test("wrong password", async () => {
        const error = await failure(client().collection("_superusers").authWithPassword(EMAIL, "wrong-password"))
        assert.equal(error.status, 400)
        assert.equal(error.response.message, "Failed to authenticate.")
    })
    test("health and settings", async () => {
        assert.equal((await guest.health.check()).code, 200)
        assert.equal((await root.settings.getAll()).batch.enabled, true)
    })
    test("impersonate", async () => {
        const user = await root.collection("users").create({ email: "imp@example.com", password: PASSWORD, passwordConfirm: PASSWORD })
        const other = await root.collection("users").impersonate(user.id, 60)
        assert.equal(other.authStore.record.id, user.id)
        assert.equal((await other.collection("users").getOne(user.id)).email, "imp@example.com")
    })
})

describe("collections", () => {
    test("list, view, update, truncate, delete", async () => {
        const names = (await root.collections.getFullList()).map((one) => one.name)
        assert.ok(["users", "authors", "posts"].every((name) => names.includes(name)))
        const made = await root.collections.create({ name: "scratch", type: "base", fields: [{ name: "n", type: "number" }] })
        assert.equal(made.listRule, null)
        const changed = await root.collections.update("scratch", { fields: [...made.fields, { name: "text", type: "text" }] })
        assert.deepEqual(changed.fields.map((field) => field.name), ["id", "n", "text"])
        await root.collection("scratch").create({ n: 1 })
        await root.collections.truncate("scratch")
        assert.equal((await root.collection("scratch").getList()).totalItems, 0)
        assert.equal(await root.collections.delete("scratch"), true)
        assert.equal((await failure(root.collections.getOne("scratch"))).status, 404)
    })
    test("scaffolds", async () => {
        assert.deepEqual(Object.keys(await root.collections.getScaffolds()).sort(), ["auth", "base", "view"])
    })
    test("guests are refused", async () => {
        assert.equal((await failure(guest.collections.getFullList())).status, 401)
    })
})

describe("records", () => {
    test("create, view, update with modifiers, delete", async () => {
        const made = await guest.collection("posts").create({ title: "first", score: 5, tags: ["red"] })
        assert.match(made.id, /^[a-z0-9]{15}$/)
        assert.equal(made.collectionName, "posts")
        assert.deepEqual(await guest.collection("posts").getOne(made.id), made)
        const changed = await guest.collection("posts").update(made.id, { "score+": 2, "tags+": "blue" })
        assert.equal(changed.score, 7)
        assert.deepEqual(changed.tags, ["red", "blue"])
        assert.equal(await guest.collection("posts").delete(made.id), true)
        assert.equal((await failure(guest.collection("posts").getOne(made.id))).status, 404)
    })

    test("filter, sort, fields, getFullList, getFirstListItem", async () => {
        for (let i = 1; i <= 7; i++) await guest.collection("posts").create({ title: `list ${i}`, score: i })
        const filter = guest.filter("title ~ {:text} && score > {:low}", { text: "list", low: 2 })
        const page = await guest.collection("posts").getList(1, 2, { filter, sort: "-score" })
        assert.deepEqual(page.items.map((item) => item.score), [7, 6])
        assert.deepEqual([page.page, page.perPage, page.totalItems, page.totalPages], [1, 2, 5, 3])
        const all = await guest.collection("posts").getFullList({ batch: 2, filter, sort: "score", fields: "title,score" })
        assert.deepEqual(all.map((item) => item.score), [3, 4, 5, 6, 7])
        assert.deepEqual(Object.keys(all[0]).sort(), ["score", "title"])
        assert.equal((await guest.collection("posts").getFirstListItem("title = 'list 3'")).score, 3)
        assert.equal((await failure(guest.collection("posts").getFirstListItem("title = 'none'"))).status, 404)
        assert.equal((await failure(guest.collection("posts").getList(1, 2, { filter: "nope = 1" }))).status, 400)
    })

    test("quotes in a bound filter value", async () => {
        const title = `it's "odd" \\ ü`
        await guest.collection("posts").create({ title })
        assert.equal((await guest.collection("posts").getFirstListItem(guest.filter("title = {:title}", { title }))).title, title)
    })

    test("expand, forwards and back", async () => {
        const author = await guest.collection("authors").create({ name: "Ann" })
        const post = await guest.collection("posts").create({ title: "by Ann", author: author.id }, { expand: "author" })
        assert.equal(post.expand.author.name, "Ann")
        const back = await guest.collection("authors").getOne(author.id, { expand: "posts_via_author" })
        assert.deepEqual(back.expand.posts_via_author.map((item) => item.id), [post.id])
    })

    test("files", async () => {
        const post = await guest.collection("posts").create({ title: "with a file", doc: new File(["hello"], "a b.txt") })
        const url = guest.files.getURL(post, post.doc)
        assert.equal(await (await fetch(url)).text(), "hello")
        assert.equal((await guest.collection("posts").update(post.id, { doc: null })).doc, "")
        assert.equal((await fetch(url)).status, 404)
        assert.match(await root.files.getToken(), /^\S+\.\S+\.\S+$/)
    })

    test("batch: all or nothing", async () => {
        const batch = guest.createBatch()
        batch.collection("posts").create({ title: "batch one" })
        batch.collection("posts").upsert({ id: "batchrecord0001", title: "batch two" })
        const [one, two] = await batch.send()
        assert.deepEqual([one.status, one.body.title, two.body.id], [200, "batch one", "batchrecord0001"])
        const failing = guest.createBatch()
        failing.collection("posts").delete("batchrecord0001")
        failing.collection("posts").create({ title: "" })
        const error = await failure(failing.send())
        assert.equal(error.status, 400)
        assert.equal(error.response.data.requests[1].response.data.title.code, "validation_required")
        assert.equal((await guest.collection("posts").getOne("batchrecord0001")).title, "batch two")
    })

    test("error objects", async () => {
        const error = await failure(guest.collection("posts").create({ title: "x".repeat(41), tags: ["none"] }))
        assert.equal(error.status, 400)
        assert.equal(error.isAbort, false)
        assert.equal(error.url, `${process.env.PB_URL}/api/collections/posts/records`)
        assert.equal(error.response.message, "Failed to create record.")
        assert.equal(error.message, "Failed to create record.")
        assert.deepEqual(Object.keys(error.response.data).sort(), ["tags", "title"])
        assert.equal(error.response.data.title.code, "validation_max_text_constraint")
        assert.match(error.toJSON().response.data.title.message, /40/)
    })

    test("a repeated call cancels the pending one", async () => {
        const eager = new PocketBase(process.env.PB_URL)
        const [first, second] = await Promise.allSettled([eager.collection("posts").getList(), eager.collection("posts").getList()])
        assert.equal(first.reason.isAbort, true)
        assert.equal(second.status, "fulfilled")
    })
})

describe("users", () => {
    const user = client()
    test("sign-up, log-in, refresh, log-out", async () => {
        const made = await guest.collection("users").create({ email: "ann@example.com", password: PASSWORD, passwordConfirm: PASSWORD, name: "Ann" })
        assert.equal(made.email, undefined) // hidden from others
        const { token, record } = await user.collection("users").authWithPassword("ann@example.com", PASSWORD)
        assert.equal(record.id, made.id)
        assert.equal(user.authStore.token, token)
        assert.equal(user.authStore.record.email, "ann@example.com")
        const again = await user.collection("users").authRefresh()
        assert.equal(again.record.id, made.id)
        assert.ok(user.authStore.isValid)
        assert.equal((await user.collection("users").update(made.id, { name: "Anna" })).name, "Anna")
        user.authStore.clear()
        assert.equal((await failure(user.collection("users").authRefresh())).status, 401)
    })
    test("mismatched passwords", async () => {
        const error = await failure(guest.collection("users").create({ email: "bob@example.com", password: PASSWORD, passwordConfirm: "other-password" }))
        assert.equal(error.response.data.passwordConfirm.code, "validation_values_mismatch")
    })
    test("auth methods", async () => {
        const methods = await guest.collection("users").listAuthMethods()
        assert.equal(methods.password.enabled, true)
        assert.deepEqual(methods.oauth2.providers, [])
    })
    test("a new password ends old tokens", async () => {
        const { record } = await user.collection("users").authWithPassword("ann@example.com", PASSWORD)
        await user.collection("users").update(record.id, { oldPassword: PASSWORD, password: "9876543210", passwordConfirm: "9876543210" })
        assert.equal((await failure(user.collection("users").authRefresh())).status, 401)
    })
})

describe("realtime", () => {
    test("subscribe, receive each kind of event, unsubscribe", { timeout: 30_000 }, async () => {
        const events = []
        let arrived
        const next = () => new Promise((resolve) => (arrived = resolve))
        const listening = client()
        await listening.collection("posts").subscribe("*", (event) => {
            events.push([event.action, event.record.title])
            arrived()
        })
        let waiting = next()
        const post = await guest.collection("posts").create({ title: "live" })
        await waiting
        waiting = next()
        await guest.collection("posts").update(post.id, { title: "changed" })
        await waiting
        waiting = next()
        await guest.collection("posts").delete(post.id)
        await waiting
        assert.deepEqual(events, [["create", "live"], ["update", "changed"], ["delete", "changed"]])
        await listening.collection("posts").unsubscribe()
        assert.equal(listening.realtime.isConnected, false)
    })
})

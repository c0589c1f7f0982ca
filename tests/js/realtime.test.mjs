// The official JavaScript SDK's realtime against a running server, in node. Started by tests/test_js_realtime.py, which gives PB_URL.
import assert from "node:assert/strict"
import { before, test } from "node:test"
import { EventSource } from "eventsource"
import PocketBase from "pocketbase"

globalThis.EventSource = EventSource // node has none of its own

const [EMAIL, PASSWORD] = ["root@example.com", "1234567890"]
const client = () => new PocketBase(process.env.PB_URL).autoCancellation(false)
const root = client()

// An async queue of what a subscription's callback gets.
const inbox = () => {
    const messages = [], waiting = []
    const put = (message) => (waiting.length ? waiting.shift()(message) : messages.push(message))
    const next = () => (messages.length ? Promise.resolve(messages.shift()) : new Promise((resolve) => waiting.push(resolve)))
    return { put, next, messages }
}

before(async () => {
    await root.collection("_superusers").authWithPassword(EMAIL, PASSWORD)
    const open = { listRule: "", viewRule: "", createRule: "", updateRule: "", deleteRule: "" }
    const authors = await root.collections.create({ ...open, name: "rt_authors", type: "base", fields: [{ name: "name", type: "text" }] })
    await root.collections.create({
        ...open, name: "rt_posts", type: "base",
        fields: [{ name: "title", type: "text" }, { name: "author", type: "relation", collectionId: authors.id, maxSelect: 1 }],
    })
    await root.collections.create({ name: "rt_mine", type: "base", listRule: "owner = @request.auth.id", fields: [{ name: "owner", type: "text" }] })
})

test("subscribe to all records and to one", async () => {
    const pb = client(), all = inbox(), one = inbox()
    await pb.collection("rt_posts").subscribe("*", all.put)
    const made = await root.collection("rt_posts").create({ title: "a" })
    assert.deepEqual(await all.next(), { action: "create", record: made })
    await pb.collection("rt_posts").subscribe(made.id, one.put)
    const updated = await root.collection("rt_posts").update(made.id, { title: "b" })
    assert.deepEqual([await all.next(), await one.next()], Array(2).fill({ action: "update", record: updated }))
    await root.collection("rt_posts").delete(made.id)
    assert.deepEqual([(await all.next()).action, (await one.next()).action], ["delete", "delete"])
    await pb.realtime.unsubscribe()
})

test("options: expand, fields, filter", async () => {
    const pb = client(), got = inbox()
    const author = await root.collection("rt_authors").create({ name: "Ann" })
    await pb.collection("rt_posts").subscribe("*", got.put, { expand: "author", fields: "title,expand.author.name", filter: pb.filter("title != {:t}", { t: "no" }) })
    await root.collection("rt_posts").create({ title: "no", author: author.id })
    await root.collection("rt_posts").create({ title: "yes", author: author.id })
    assert.deepEqual(await got.next(), { action: "create", record: { title: "yes", expand: { author: { name: "Ann" } } } })
    await pb.realtime.unsubscribe()
})

test("the logged-in user's rules apply", async () => {
    const user = await root.collection("users").create({ email: "rt@example.com", password: PASSWORD, passwordConfirm: PASSWORD })
    const pb = client(), got = inbox()
    await pb.collection("users").authWithPassword("rt@example.com", PASSWORD)
    await pb.collection("rt_mine").subscribe("*", got.put)
    await root.collection("rt_mine").create({ owner: "somebody" })
    const mine = await root.collection("rt_mine").create({ owner: user.id })
    assert.equal((await got.next()).record.id, mine.id)
    await pb.realtime.unsubscribe()
})

test("unsubscribe stops one topic and the last one disconnects", async () => {
    const pb = client(), first = inbox(), second = inbox()
    const stop = await pb.collection("rt_posts").subscribe("*", first.put)
    await pb.collection("rt_authors").subscribe("*", second.put)
    await stop()
    await root.collection("rt_posts").create({ title: "unheard" })
    await root.collection("rt_authors").create({ name: "heard" })
    assert.equal((await second.next()).record.name, "heard")
    assert.equal(first.messages.length, 0)
    await pb.collection("rt_authors").unsubscribe("*")
    assert.equal(pb.realtime.isConnected, false)
})

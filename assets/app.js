// The admin page: shows collections and records, and answers the links of the installer and of mails.
// It uses the public API only; what it may do is what its token may do. Data becomes text nodes, never HTML.

// ---- Session: a superuser's token, until the tab closes

const API = new URL("../api/", document.baseURI);    // relative: the page may lie below a sub-path
const TOKEN_KEY = "superuser-token " + API.pathname;
const session = { token: sessionStorage.getItem(TOKEN_KEY), email: "" };    // no e-mail: not yet checked

function beginSession({ token, record }) {
  Object.assign(session, { token, email: record.email });
  sessionStorage.setItem(TOKEN_KEY, token);
}

function endSession(notice) {
  Object.assign(session, { token: null, email: "" });
  sessionStorage.removeItem(TOKEN_KEY);
  showLogin(notice);
}

/** The claims of a token, unverified; {} if it is none. */
function claimsOf(token) {
  try {
    const bytes = atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)))) || {};
  } catch {
    return {};
  }
}

const isOver = (token) => !(claimsOf(token).exp * 1000 > Date.now());

// ---- The API

class Failure extends Error {
  constructor(status, data) {
    super(data?.message || (status ? `The server answered with status ${status}.` : "The server cannot be reached."));
    Object.assign(this, { status, mfaId: data?.mfaId, fields: Object.entries(data?.data || {}) });    // [name, {code, message}]
  }
}

/** The JSON of an answer, if it has any. Throws a Failure, or an AbortError when `signal` said so. */
async function ask(method, path, { body, token, signal } = {}) {
  const headers = { ...(token && { Authorization: token }), ...(body && { "Content-Type": "application/json" }) };
  let answer, text, data = null;
  try {
    answer = await fetch(new URL(path, API), { method, headers, body: body && JSON.stringify(body), signal });
    text = await answer.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure(0);
  }
  try {
    data = JSON.parse(text);
  } catch { /* no content, or the page of a proxy */ }
  if (!answer.ok) throw new Failure(answer.status, data);
  return data;
}

/** Asks as the superuser. A token that is over ends the session: the server would take us for a guest, and show less. */
async function askAsSuperuser(method, path, signal) {
  const { token } = session;
  try {
    if (isOver(token)) throw new Failure(401, { message: "Its time is over." });
    return await ask(method, path, { token, signal });
  } catch (error) {
    if (![401, 403].includes(error.status)) throw error;
    if (token === session.token) endSession(`Your session has ended. ${error.message} Please log in again.`);
    throw new DOMException("", "AbortError");
  }
}

const read = (path, signal) => askAsSuperuser("GET", path, signal);
const recordsPath = (collection, id) => `collections/${encodeURIComponent(collection)}/records${id ? "/" + encodeURIComponent(id) : ""}`;

// ---- Elements

const $ = (id) => document.getElementById(id);

/** h("a", {href: "#/", onclick: go}, "text", child): what is null, false or empty is left out. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element[name] = value;
    else if (value != null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(Boolean));
  return element;
}

const say = (box, ...lines) => box.replaceChildren(...lines.map((line) => h("p", null, line)));

/** Replaces the card or the shell, and ends its loads. */
function fillPage(content) {
  Object.values(shell?.loads || {}).forEach((load) => load.abort());
  shell = null;
  document.querySelector(".card, .shell")?.remove();
  document.body.append(content);
}

/** Shows one card, and moves the focus to its first input, else to its title. */
function showCard(title, ...children) {
  document.title = title;
  fillPage(h("main", { class: "card" }, h("h1", { tabindex: -1 }, title), children));
  (document.querySelector(".card input") || document.querySelector("h1")).focus();
}

/** A form. A Failure of `send(values)` is shown in words, those of `explain(failure)` if it has any. */
function makeForm(inputs, button, send, explain = () => "") {
  const problem = h("div", { role: "alert" });
  const form = h("form", null, inputs.map(([name, label, type, autocomplete]) =>
    h("label", null, label, h("input", { name, type, autocomplete, required: "" }))), problem, h("button", null, button));
  const find = (name) => form.elements.namedItem(name);
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return;
    form.ariaBusy = "true";
    say(problem);
    inputs.forEach(([name]) => find(name).removeAttribute("aria-invalid"));
    try {
      await send(Object.fromEntries(new FormData(form)));
    } catch (failure) {
      if (failure.status == null) throw failure;
      say(problem, explain(failure) || failure.message, ...failure.fields.map(([name, { message }]) => `${find(name)?.labels[0].firstChild.data || name}: ${message}`));
      for (const [name] of failure.fields.reverse()) {
        find(name)?.setAttribute("aria-invalid", "true");
        find(name)?.focus();
      }
    }
    form.ariaBusy = "false";
  };
  return form;
}

// ---- Log in

const PASSWORD = ["password", "Password", "password", "current-password"];
const ONLY_SHOWS = "This page only shows data. To create, change or delete something, use the API for now.";
const SECOND_FACTOR = "The password is right, but this account also needs a second factor, which this page cannot ask for yet. Use the API.";

const logIn = async (identity, password) => beginSession(await ask("POST", "collections/_superusers/auth-with-password", { body: { identity, password } }));

function showLogin(notice) {
  const form = makeForm([["identity", "E-mail", "text", "username"], PASSWORD], "Log in", async ({ identity, password }) => {
    await logIn(identity, password);
    route();
  }, (failure) => failure.mfaId && SECOND_FACTOR);
  showCard("Superuser login", notice && h("p", { role: "status" }, notice), form, h("p", { class: "soft" }, ONLY_SHOWS));
}

// ---- Links of the installer and of mails: they use the token in the address, and leave a superuser's session alone

const NEW_PASSWORD = [["password", "New password", "password", "new-password"], ["passwordConfirm", "New password again", "password", "new-password"]];
const NO_LINK = "This link is no longer valid";
const NEW_INSTALLER = "It works for 30 minutes, while there is no superuser. Restart the server for a new one, or run: superuser upsert EMAIL PASSWORD";
const CLOSE = "You can close this window and go back to the app.";

function showInstaller(token) {
  if (isOver(token)) return showCard(NO_LINK, NEW_INSTALLER, h("a", { href: "#/" }, "Superuser login"));
  const form = makeForm([["email", "E-mail", "email", "username"], ...NEW_PASSWORD], "Create superuser", async (body) => {
    await ask("POST", recordsPath("_superusers"), { body, token });
    history.replaceState(null, "", "#/");
    await logIn(body.email, body.password).then(route, ({ message }) => showLogin(`The superuser is created. ${message}`));
  }, ({ status }) => (status === 401 || status === 403) && `${NO_LINK}. ${NEW_INSTALLER}`);
  showCard("Create the first superuser", "A superuser may see and change everything on this server.", form);
}

/** Action of the API: title, text, inputs, button, and the title when it is done: at once if there are no inputs. */
const MAIL_LINKS = {
  "confirm-verification": ["Verify your e-mail address", ({ email }) => email, [], "Verify", "Your e-mail address is verified"],
  "confirm-password-reset": ["Choose a new password", ({ email }) => email && `For the account ${email}.`, NEW_PASSWORD, "Set password", "Your password is changed"],
  "confirm-email-change": ["Confirm your new e-mail address", ({ newEmail }) => newEmail && `Enter the password of your account to use ${newEmail} from now on.`,
    [PASSWORD], "Confirm", "Your e-mail address is changed"],
};

function showMailLink(action, token) {
  const [title, text, inputs, button, done] = MAIL_LINKS[action];
  const claims = claimsOf(token);
  if (isOver(token) || !claims.collectionId) return showCard(NO_LINK, "It is too old or incomplete. Ask for a new mail in the app.");
  const form = makeForm(inputs, button, async (body) => {
    await ask("POST", `collections/${encodeURIComponent(claims.collectionId)}/${action}`, { body: { token, ...body } });
    showCard(done, CLOSE);
  });
  showCard(title, text(claims), form);
  if (!inputs.length) form.requestSubmit();
}

function showOAuth2(outcome) {
  showCard(outcome === "success" ? "You are logged in" : "The login did not succeed", CLOSE);
  window.close();    // works where a script has opened the window
}

// ---- Collections

let shell = null;    // what the view of collections shows, while it is on the page

async function showCollections() {
  if (!session.token) return showLogin();
  try {
    if (!session.email) beginSession(await askAsSuperuser("POST", "collections/_superusers/auth-refresh"));
    if (!shell) buildShell((await read("collections?perPage=1000&skipTotal=1&sort=name")).items);
    showRecords();
  } catch (error) {
    if (error.name === "AbortError") return;
    showCard("Something is wrong", h("p", { role: "alert" }, error.message), h("button", { onclick: route }, "Try again"));
  }
}

function buildShell(collections) {
  const root = h("div", { class: "shell" }, $("shell").content.cloneNode(true));
  fillPage(root);
  shell = { root, collections, loads: {} };
  $("host").textContent = location.host;
  $("who").textContent = session.email;
  root.querySelector("footer").textContent = ONLY_SHOWS;
  $("logout").onclick = () => {
    history.replaceState(null, "", "#/");
    endSession("You are logged out.");
  };
  $("menu").onclick = () => openMenu();
  $("filter").onsubmit = $("filter").onreset = applyFilter;
  $("close").onclick = closeRecord;
  root.onkeydown = (event) => {
    if (event.key === "Escape" && view().record) closeRecord();
  };
  const link = ({ id, name, type }) =>
    h("li", null, h("a", { href: address({ collection: name }, {}), "data-id": id, onclick: () => openMenu(false) }, name, h("span", { class: "soft" }, type)));
  for (const [title, system] of [["Collections", false], ["System", true]]) {
    $("collections").append(h("h2", null, title), h("ul", null, collections.filter((each) => each.system === system).map(link)));
  }
}

function openMenu(open) {
  $("menu").ariaExpanded = shell.root.classList.toggle("menu-open", open);
}

// ---- Records

const PER_PAGE = 50;
const LONGEST_CELL = 200;    // characters in the table; the panel shows all

/** Shows what the address says; asks the server only for what is new. */
function showRecords() {
  const place = view();
  const { collections } = shell;
  if (!place.collection && collections.length) {
    const { name } = collections.find((each) => !each.system) || collections[0];
    history.replaceState(null, "", address({ collection: name }, {}));
    return showRecords();
  }
  const collection = collections.find((each) => each.name === place.collection || each.id === place.collection);
  if (!collection) return showCard(`There is no collection ${place.collection}`, h("a", { href: "#/" }, "All collections"));
  if (shell.collection !== collection) {
    shell.collection = collection;
    document.title = `${collection.name} - ${location.host}`;
    $("heading").replaceChildren(collection.name, " ", h("span", { class: "soft" }, collection.type));
    $("heading").focus();
    for (const link of $("collections").querySelectorAll("a")) link.ariaCurrent = link.dataset.id === collection.id ? "page" : null;
  }
  const list = JSON.stringify([collection.id, place.filter, place.sort, place.page]);
  const opened = JSON.stringify([collection.id, place.record]);
  if (list !== shell.list) loadList(collection, place);
  markRow();
  if (opened !== shell.opened) loadRecord(collection, place.record);
  Object.assign(shell, { list, opened });
}

function markRow() {
  for (const row of $("table").querySelectorAll("tbody tr")) row.classList.toggle("chosen", row.dataset.id === view().record);
}

/** The signal of a new load, which ends the one under way. */
function newLoad(name) {
  shell.loads[name]?.abort();
  shell.loads[name] = new AbortController();
  return shell.loads[name].signal;
}

async function loadList(collection, { filter, sort, page }) {
  const signal = newLoad("list");
  const order = sort || (collection.type === "view" ? "" : "-@rowid");    // newest first; the rows of a view have no such number
  $("filter-text").value = filter;
  $("table").ariaBusy = "true";
  try {
    const result = await read(`${recordsPath(collection.id)}?${new URLSearchParams({ page, perPage: PER_PAGE, sort: order, filter })}`, signal);
    say($("problem"));
    fillTable(collection, result.items, sort);
    fillPages(result, filter);
  } catch (error) {
    if (error.name === "AbortError") return;
    say($("problem"), error.status === 400 ? "The server does not accept the filter or the sort order. Check the names of fields, the operators and the quotes." : error.message);
    $("table").replaceChildren();
  }
  $("table").hidden = $("pages").hidden = $("problem").hasChildNodes();
  $("table").ariaBusy = "false";
}

function fillTable({ fields, type }, items, sort) {
  const columns = fields.filter((field) => field.type !== "password" && !(type === "auth" && field.name === "tokenKey"));
  const row = (record) => h("tr", { "data-id": record.id, onclick: openRow }, columns.map((field) => cell(field, record)));
  const key = document.activeElement.dataset.key;    // the focus stays on the same column or record
  $("table").replaceChildren(h("table", null, h("thead", null, h("tr", null, columns.map((field) => columnHead(field, sort)))), h("tbody", null, items.map(row))));
  if (key) $("table").querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  $("table").scrollTop = 0;
  markRow();
}

/** The button of a column turns to ascending, descending, and back to newest first. */
function columnHead({ name, type }, sort) {
  const next = { [name]: "-" + name, ["-" + name]: "" }[sort] ?? name;
  const state = next === name ? null : next ? "ascending" : "descending";
  return h("th", { scope: "col", "aria-sort": state, class: type === "number" && "number" },
    h("button", { "data-key": "column " + name, onclick: () => go({ sort: next, page: 1 }) }, name, state && h("span", { "aria-hidden": "true" }, next ? " ↑" : " ↓")));
}

function cell({ name, type }, record) {
  const value = record[name];
  const text = (["json", "geoPoint"].includes(type) && JSON.stringify(value) || String(value ?? "")).slice(0, LONGEST_CELL);
  return h("td", { class: type === "number" && "number" }, name === "id" ? h("a", { href: address({ record: text }), "data-key": "row " + text }, text) : text);
}

/** A click anywhere on a row opens its record, but for one that ends a selection of text. */
function openRow(event) {
  if (!event.target.closest("a") && getSelection().isCollapsed) go({ record: event.currentTarget.dataset.id });
}

function fillPages({ page, items, totalItems, totalPages }, filter) {
  const before = (page - 1) * PER_PAGE;
  const none = filter ? "No record here matches the filter." : "There are no records here.";
  $("count").textContent = items.length ? `${before + 1} to ${before + items.length} of ${totalItems}` : none;
  for (const [id, to, possible] of [["before", Math.min(page - 1, totalPages), page > 1], ["after", page + 1, page < totalPages]]) {
    $(id).hidden = page === 1 && totalPages <= 1;
    $(id).ariaDisabled = !possible;
    $(id).onclick = () => possible && go({ page: to });
  }
}

function applyFilter(event) {
  event.preventDefault();
  const filter = event.type === "reset" ? "" : $("filter-text").value.trim();
  shell.list = "";    // the same filter again is a fresh look
  if (address({ filter, page: 1 }) === location.hash) showRecords();
  else go({ filter, page: 1 });
}

// ---- One record

async function loadRecord(collection, id) {
  const signal = newLoad("record");
  const before = $("record").hidden ? "" : $("record").dataset.id;
  $("record").hidden = !id;
  $("record").dataset.id = id;
  if (!id) return before && ($("table").querySelector(`[data-key="row ${CSS.escape(before)}"]`) || $("heading")).focus();
  say($("record-problem"));
  $("record-title").textContent = `Record ${id}`;
  $("json").textContent = "Loading…";
  $("record-title").focus();
  try {
    $("json").textContent = JSON.stringify(await read(recordsPath(collection.id, id), signal), null, 2);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("json").textContent = "";
    say($("record-problem"), error.message);
  }
}

const closeRecord = () => go({ record: "" });

// ---- Addresses

/** What the address asks for: #/collections?collection=posts&filter=...&sort=-title&page=2&record=ID */
function view() {
  const query = new URLSearchParams(/^#\/collections\?(.*)/.exec(location.hash)?.[1]);
  return { collection: "", filter: "", sort: "", record: "", ...Object.fromEntries(query), page: Math.max(1, parseInt(query.get("page")) || 1) };
}

/** The address of this view with some parts changed. */
function address(change, from = view()) {
  return "#/collections?" + new URLSearchParams(Object.entries({ ...from, ...change }).filter(([name, value]) => value && (name !== "page" || value > 1)));
}

const go = (change) => { location.hash = address(change); };

const ROUTES = [
  [/^#\/pbinstall\/([^/]+)$/, showInstaller],
  [/^#\/auth\/(confirm-verification|confirm-password-reset|confirm-email-change)\/([^/]+)$/, showMailLink],
  [/^#\/auth\/oauth2-redirect-(success|failure)/, showOAuth2],
  [/^/, () => showCollections()],
];

function route() {
  const [pattern, show] = ROUTES.find(([each]) => each.test(location.hash));
  return show(...pattern.exec(location.hash).slice(1));
}

addEventListener("hashchange", route);
route();

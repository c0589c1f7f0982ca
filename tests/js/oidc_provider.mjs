// A certified OpenID provider on a free port of 127.0.0.1, with PKCE enforced and nobody at the screen: whoever is sent here
// is signed in at once, as the account that `login_hint` describes by its claims: login_hint={"sub":"ann","email":"ann@example.com"}.
// Started by tests/helpers_oidc.py, which gives REDIRECT_URIS (separated by spaces); prints its address when it is ready.
import { generateKeyPairSync } from "node:crypto"
import { createServer } from "node:http"
import Provider from "oidc-provider"

const server = createServer()
await new Promise((ready) => server.listen(0, "127.0.0.1", ready))
const issuer = `http://127.0.0.1:${server.address().port}`

const key = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" })
const accounts = new Map()

const provider = new Provider(issuer, {
    clients: [{ client_id: "the:client", client_secret: "s3 cret/+", redirect_uris: process.env.REDIRECT_URIS.split(" ") }],
    pkce: { required: () => true },
    jwks: { keys: [{ ...key, kid: "key-1", alg: "RS256", use: "sig" }] },
    cookies: { keys: ["cookie-key"] },
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name", "preferred_username", "picture"] },
    conformIdTokenClaims: false, // so that the id token holds what the user info does
    features: { devInteractions: { enabled: false } },
    interactions: { url: (context, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (context, sub) => ({ accountId: sub, claims: () => accounts.get(sub) }),
    ttl: { Interaction: 600, Session: 600, Grant: 600, AccessToken: 600, IdToken: 600, AuthorizationCode: 60 },
})

const answer = provider.callback()
server.on("request", async (req, res) => {
    if (!req.url.startsWith("/interaction/")) return answer(req, res)
    const { prompt, params, session } = await provider.interactionDetails(req, res)
    if (prompt.name === "login") {
        const claims = JSON.parse(params.login_hint)
        accounts.set(claims.sub, claims)
        return provider.interactionFinished(req, res, { login: { accountId: claims.sub } })
    }
    const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id })
    grant.addOIDCScope(params.scope)
    return provider.interactionFinished(req, res, { consent: { grantId: await grant.save() } })
})
process.stdin.on("close", () => process.exit()).resume() // ends with the test that started it
console.log(issuer)

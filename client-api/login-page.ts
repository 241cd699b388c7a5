import type { FastifyInstance } from 'fastify';
import { sendPage } from './html-page.ts';

const BODY = `<h1>Log in</h1>
<form id="form">
<p role="alert" id="failure" hidden></p>
<p><label>User name<br><input id="user" autocomplete="username" autocapitalize="none" required></label></p>
<p><label>Password<br><input id="password" type="password" autocomplete="current-password" required></label></p>
<p><button>Log in</button></p>
</form>
<p id="done" hidden>You are logged in. You may close this window and go on in your app.</p>`;

/** Parameters of the query that are no credentials go into the request. */
const SCRIPT = `
const element = (id) => document.getElementById(id);
element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new URLSearchParams(location.search);
  const body = {
    type: "m.login.password",
    identifier: { type: "m.id.user", user: element("user").value },
    password: element("password").value,
  };
  for (const name of ["device_id", "initial_device_display_name"])
    if (given.has(name)) body[name] = given.get(name);
  if (given.get("refresh_token") === "true") body.refresh_token = true;
  const failure = element("failure");
  failure.hidden = true;
  try {
    const answer = await fetch("/_matrix/client/v3/login", { method: "POST", body: JSON.stringify(body) });
    const response = await answer.json();
    if (!answer.ok) throw new Error(response.error);
    element("form").hidden = true;
    element("done").hidden = false;
    if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(response);
    else if (window.onLogin) window.onLogin(response);
  } catch (error) {
    failure.textContent = error.message;
    failure.hidden = false;
  }
});`;

/** The page by which clients have their users log in that know none of the login types (spec: "Login Fallback"). */
export function loginPage(app: FastifyInstance): void {
  for (const path of ['/_matrix/static/client/login/', '/_matrix/static/client/login'])
    app.get(path, { config: { auth: 'none' } }, async (_request, reply) =>
      sendPage(reply, 200, {
        title: 'Log in',
        body: BODY,
        script: SCRIPT,
        policy: "connect-src 'self'; form-action 'none'",
      }),
    );
}

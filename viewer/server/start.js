// First script of the page, before Bokeh. It sets the theme before the first paint, starts the components, and watches
// the connection to the server. If the server is silent or the socket closes, a bar says so, the page takes no input,
// and it loads again as soon as the server answers. The address holds the state of the page.
(() => {
  const theme = new URLSearchParams(location.search).get("theme");
  const dark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";

  // Panel imports through a shim that fetches and rewrites every file, and makes the module that starts a component from
  // a text. The viewer's files need no rewriting, and the page runs no text as a script.
  const starter = {default: {render(id) {
    const view = Bokeh.index.find_one_by_id(id);
    if (!view) return;
    view.render_fn({view, model: view.model_proxy, data: view.model.data, el: view.container});
    view.after_rendered();
  }}};
  const load = async url => url.startsWith("blob:") ? starter : import(new URL(url, document.baseURI));
  const native = Object.assign(load, {addImportMap() {}});
  Object.defineProperty(window, "importShim", {get: () => native, set() {}});

  // Panel's script is a plug-in of a hundred models, most of them widgets that need two more libraries. The pages use two
  // models. Modules of a plug-in run when they are required, so an entry of our own leaves the others unread. Two base
  // classes of widgets are named by a module that is used, but nothing is made of them here.
  const MODELS = ["models/column", "models/reactive_esm"], ENTRY = "headatlas";
  const widgets = {
    "models/widgets/widget": (require, module) => { module.exports = {WidgetView: require("models/layouts/layout_dom").LayoutDOMView}; },
    "models/widgets/markup": (require, module) => { module.exports = {Markup: require("models/layouts/layout_dom").LayoutDOM}; },
    [ENTRY]: require => require("base").register_models(Object.assign({}, ...MODELS.map(name => require(name)))),
  };
  let bokeh;
  Object.defineProperty(window, "Bokeh", {get: () => bokeh, set(loaded) {
    bokeh = loaded;
    if (!loaded.register_plugin) return;
    const register = loaded.register_plugin;
    loaded.register_plugin = (modules, entry, aliases, externals) => {
      try { return register({...modules, ...widgets}, ENTRY, aliases, externals); }
      catch (error) { addEventListener("DOMContentLoaded", () => show(`The viewer cannot start with this version of Panel (${error.message}). Install the versions that pip chooses for headatlas[viewer].`)); throw error; }
    };
  }});

  const PING_MS = 1000, SILENCE_MS = 4000, DEAD_MS = 12000;
  let socket = null, asked = 0, closed = false, bar = null, leaving = false;
  addEventListener("pagehide", () => { leaving = true; });
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });

  function show(text) {
    if (leaving || !document.body) return;
    if (!bar) {
      bar = document.createElement("div");
      bar.setAttribute("role", "alert");
      bar.dataset.connection = "lost";
      bar.style.cssText = "position:fixed;inset:0 0 auto 0;z-index:1000;padding:8px 16px;text-align:center;font:600 13px/1.4 var(--font);background:var(--bad-soft);color:var(--bad);box-shadow:var(--shadow)";
      document.body.append(bar);
      for (const child of document.body.children) if (child !== bar) child.inert = true;
    }
    if (bar.textContent !== text) bar.textContent = text;
  }
  function hide() {
    if (!bar) return;
    bar.remove();
    bar = null;
    for (const child of document.body.children) child.inert = false;
  }

  // Load the page again as soon as the server answers. A page that fails again at once waits longer.
  let trying = false;
  async function reload() {
    if (trying) return;
    trying = true;
    const key = "headatlas reloads", now = Date.now();
    let recent = [];
    try { recent = JSON.parse(sessionStorage.getItem(key) || "[]").filter(time => now - time < 60000); } catch { /* the browser blocks its storage */ }
    await new Promise(done => setTimeout(done, Math.min(10000, 250 * 2 ** recent.length)));
    for (;;) {
      try {
        if ((await fetch("liveness", {cache: "no-store"})).ok) break;
      } catch { /* still away */ }
      await new Promise(done => setTimeout(done, 1000));
    }
    try { sessionStorage.setItem(key, JSON.stringify([...recent, Date.now()])); } catch { /* as above */ }
    location.reload();
  }

  setInterval(() => {
    if (!socket || closed || leaving) return;
    if (asked) {
      const silence = performance.now() - asked;
      if (silence > SILENCE_MS) show("The viewer does not answer. What is shown may no longer be true; waiting for it\u2026");
      if (silence > DEAD_MS) reload();
    } else if (socket.readyState === WebSocket.OPEN) {
      asked = performance.now();
      socket.send("ping");
    }
  }, PING_MS);

  window.WebSocket = class extends WebSocket {
    constructor(...options) {
      super(...options);
      socket = this;
      this.addEventListener("close", () => {
        if (this !== socket || leaving) return;
        closed = true;
        show("The connection to the viewer is lost. What is shown may no longer be true; reconnecting\u2026");
        reload();
      });
    }
    set onmessage(handler) {
      super.onmessage = event => {
        asked = 0;
        if (!closed) hide();
        if (event.data === "pong") return;
        handler(event);
        // Bokeh sends every model that came from the server back with the first message about it. The server knows them.
        for (const shown of Bokeh.documents) shown._new_models?.clear();
      };
    }
  };

  addEventListener("DOMContentLoaded", () => {
    if (!bokeh?.set_log_level) return;   // the bar says why
    Bokeh.set_log_level("error");
    Bokeh.embed.embed_items({}, [JSON.parse(document.getElementById("session").textContent)]);
  });
})();

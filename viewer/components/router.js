// The address bar. Python sends the query of its state. A changed choice becomes a history entry; a change that only
// affects a picture replaces the current entry after 200 ms. Back and Forward send the restored query to Python.
import { plain } from "../_js/paint.js";
import { debounced } from "../_js/shell.js";
import { apply, decodeMessage } from "../_js/wire.js";

// frame: {query, pushes: number of history entries so far (two frames may arrive as one), title, theme:
//         "auto"|"light"|"dark", heard: number of Back/Forward steps Python has answered}
export function render({model, el: host}) {
  const media = matchMedia("(prefers-color-scheme: dark)");
  let travelled = 0, pushed = 0;
  const url = query => location.pathname + (query ? `?${query}` : "");
  const present = () => location.search.replace(/^\?/, "");
  // Changes of the history and the title are calls to another process of the browser, which can be slow: draw the
  // picture first
  const waiting = [];
  let due = false;
  const later = () => { if (!due) { due = true; requestAnimationFrame(() => setTimeout(write)); } };
  const push = query => { waiting.push(query); later(); };
  const write = () => {
    due = false;
    for (const query of waiting.splice(0)) history.pushState(null, "", url(query));
    const {title} = plain(model.frame);
    if (title && title !== document.title) document.title = title;
  };
  const replace = debounced(200, query => { if (query !== present()) history.replaceState(null, "", url(query)); });
  const dress = () => {
    const theme = plain(model.frame).theme;
    const next = theme === "light" || theme === "dark" ? theme : media.matches ? "dark" : "light";
    if (document.documentElement.dataset.theme !== next) document.documentElement.dataset.theme = next;
  };
  const follow = () => {
    const frame = plain(model.frame);
    later();
    dress();
    if (frame.reload) return location.reload();
    if (frame.query === undefined || frame.heard < travelled) return;   // the answer to an earlier step
    const fresh = frame.pushes > pushed && frame.query !== (waiting.at(-1) ?? present());
    pushed = frame.pushes;
    if (fresh) { replace.drop(); push(frame.query); }
    else replace(frame.query);
  };
  const back = () => model.send_msg({travel: present(), step: ++travelled});
  addEventListener("popstate", back);
  media.addEventListener("change", dress);
  model.on("frame", follow);
  model.on("remove", () => { removeEventListener("popstate", back); media.removeEventListener("change", dress); });
  // one message holds the changes of all components (wire.py)
  model.on("msg:custom", data => apply(model.document, decodeMessage(plain(data))));
  model.send_msg({listens: true});
  host.style.display = "none";
  document.getElementById("skeleton")?.remove();
  follow();
}

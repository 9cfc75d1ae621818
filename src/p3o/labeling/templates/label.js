// Keys, and forms that are sent until they are saved. Everything here works without this script too, by plain forms.
"use strict";

const QUICK_RETRY_MS = 250;
const SLOW_RETRY_MS = 5000;
const GIVE_UP_WAITING_MS = 15000;
const status = document.getElementById("status");
let sending = false;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Posts a form until a server answers that can: the form's key makes the same answer sent twice one label.
async function answered(form, body) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const response = await fetch(form.getAttribute("action"), {
        method: "POST",
        body,
        signal: AbortSignal.timeout(GIVE_UP_WAITING_MS),
      });
      if (response.status < 500 && response.status !== 429) {
        return { saved: response.ok, html: await response.text() };
      }
    } catch {
      // No answer, or half of one: nobody knows whether it was saved, so it is sent again.
    }
    status.textContent = "Not saved yet: the server is not responding. Trying again…";
    status.className = "shown";
    await pause(Math.min(SLOW_RETRY_MS, QUICK_RETRY_MS * 2 ** attempt));
  }
}

function show(html, message) {
  const next = new DOMParser().parseFromString(html, "text/html");
  document.getElementById("page").replaceWith(next.getElementById("page"));
  document.title = next.title;
  status.className = "";
  status.textContent = `${message} ${next.title.split(" · ")[0]}.`;
  window.scrollTo(0, 0);
  document.querySelector("main").focus({ preventScroll: true });
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.kept) return;
  event.preventDefault();
  if (sending) return;
  sending = true;
  const body = new URLSearchParams(new FormData(form, event.submitter));
  form.classList.add("sending");
  const answer = await answered(form, body);
  sending = false;
  show(answer.html, answer.saved ? form.dataset.kept : "");
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.matches("textarea, input:not([type=radio])")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const button = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!button || sending) return;
  event.preventDefault();
  if (button.matches("summary")) button.focus(); // what it opens is in sight
  button.click();
});

window.addEventListener("beforeunload", (event) => {
  if (sending) event.preventDefault();
});

"use strict";

const form = document.getElementById("form");
const answer = document.getElementById("answer");
const list = document.getElementById("mails");
const summary = document.getElementById("summary");
const live = document.getElementById("live");

/** What the server has said of each mail, and its row, by number. */
const mails = new Map();
/** Of so many the first attempt has begun; a mail that is queued waits for the others before it. */
let begun = 0;
/** So many are to be tried again, and may come before it too. */
let retrying = 0;

const words = {
  queued: (mail) => {
    const before = mail.number - begun - 1 + retrying;
    if (before <= 0) return "queued, next";
    return `queued, ${retrying > 0 ? "up to " : ""}${before} before it`;
  },
  sending: (mail) => (mail.attempt > 1 ? `sending, attempt ${mail.attempt}` : "sending"),
  waiting: (mail) => `attempt ${mail.attempt} failed, to be tried again`,
  sent: () => "sent",
  failed: () => "failed",
  unknown: () => "not known",
};

/** All that a client has written becomes text, and never markup. */
function element(kind, name) {
  const made = document.createElement(kind);
  made.className = name;
  return made;
}

/** So many rows, as the server sends at first: those of the latest mails. */
const most = 200;

function rowOf(mail) {
  const row = document.createElement("li");
  row.dataset.number = mail.number;
  row.append(element("span", "subject"), element("span", "state"), element("span", "to"), element("span", "id"));
  row.append(element("span", "why"));
  list.prepend(row);
  while (list.children.length > most) {
    mails.delete(Number(list.lastChild.dataset.number));
    list.lastChild.remove();
  }
  return row;
}

function show({ mail, row }) {
  row.dataset.state = mail.state;
  const texts = {
    subject: mail.subject || "(no subject)",
    state: words[mail.state](mail),
    to: mail.to,
    id: `task ${mail.task}`,
    why: mail.state === "unknown" ? `It is not known whether it was delivered: ${mail.why}` : mail.why || "",
  };
  for (const cell of row.children) {
    const text = texts[cell.className];
    if (cell.textContent !== text) cell.textContent = text;
  }
}

function told(event) {
  const isMoved = begun !== event.begun || retrying !== event.retrying;
  ({ begun, retrying } = event);
  const oldest = mails.size < most ? 0 : Math.min(...mails.keys());
  for (const mail of event.mails) {
    // One that came before all that are shown is not shown either.
    if (mail.number < oldest) continue;
    const row = mails.get(mail.number)?.row ?? rowOf(mail);
    const known = { mail, row };
    mails.set(mail.number, known);
    show(known);
  }
  const all = [...mails.values()];
  if (isMoved) all.filter(({ mail }) => mail.state === "queued").forEach(show);
  const count = (...states) => all.filter(({ mail }) => states.includes(mail.state)).length;
  const parts = [
    [count("queued", "sending", "waiting"), "on their way"],
    [count("failed"), "failed"],
    [count("unknown"), "not known"],
  ];
  summary.textContent = parts.filter(([n]) => n > 0).map(([n, what]) => `${n} ${what}`).join(", ");
}

/** The server says something every three seconds. From one that is silent for much longer, nothing more will come. */
const longestSilence = 8000;
let events;
/** When the server is taken for gone, or looked for again. */
let timer;

function say(state, text) {
  live.dataset.state = state;
  live.textContent = text;
}

function watch() {
  events = new EventSource("/events");
  let fresh = true;
  events.onopen = () => {
    fresh = true;
    heard();
    say("live", "live");
  };
  events.onmessage = ({ data }) => {
    heard();
    if (fresh) {
      // All that is known comes first, also after the server was started anew.
      mails.clear();
      list.replaceChildren();
      fresh = false;
    }
    told(JSON.parse(data));
  };
  events.addEventListener("heartbeat", heard);
  events.onerror = lost;
  heard();
}

function heard() {
  clearTimeout(timer);
  timer = setTimeout(lost, longestSilence);
}

function lost() {
  rest();
  say("lost", "reconnecting");
  timer = setTimeout(watch, 3000);
}

function rest() {
  clearTimeout(timer);
  events?.close();
}

/** A browser has six connections to a server for all its tabs, so those that nobody sees keep none. */
function seen() {
  rest();
  if (document.hidden) return say("connecting", "resting");
  say("connecting", "connecting");
  watch();
}

function complain(field, problem) {
  const input = form.elements[field];
  input.setAttribute("aria-invalid", "true");
  document.getElementById(`${field}-problem`).textContent = problem;
  input.focus();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  for (const problem of form.querySelectorAll(".problem")) problem.textContent = "";
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  answer.className = "";
  answer.textContent = "";
  button.disabled = true;
  const started = performance.now();
  try {
    const body = new URLSearchParams(new FormData(form));
    const response = await fetch("/mails", { method: "POST", body, signal: AbortSignal.timeout(longestSilence) });
    if (response.status === 202) {
      const { task } = await response.json();
      answer.textContent = `task ${task}, accepted in ${Math.max(1, Math.round(performance.now() - started))} ms`;
      form.elements.text.value = form.elements.subject.value = "";
    } else if (response.status === 422) {
      const { field, problem } = await response.json();
      complain(field, problem);
    } else {
      answer.className = "bad";
      const busy = "Too many letters wait. Try again in a few seconds.";
      answer.textContent = response.status === 503 ? busy : `Not accepted: ${response.status} ${response.statusText}`;
    }
  } catch (error) {
    answer.className = "bad";
    const silent = "The server does not answer. If it has accepted the letter, that will show here.";
    answer.textContent = error.name === "TimeoutError" ? silent : "The server is not there.";
  } finally {
    button.disabled = false;
  }
});

document.addEventListener("visibilitychange", seen);
seen();

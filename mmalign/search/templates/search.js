// The search page: a query (text or image) -> the server's JSON -> results.
//
//   form, example, caption, URL  -> ask({q})       -> GET /search   -> images
//   file, drop, paste, "search with this image"    -> ask({blob})   -> POST /search -> captions by language
//
// The results depend only on `answer` and the chosen language, so choosing a language sends no request. Choosing a
// source asks again.
"use strict";

const $ = (id) => document.getElementById(id);
const mostBytes = Number(document.body.dataset.mostBytes);
const names = Object.fromEntries([...$("lang").options].map(({ value, text }) => [value, text])); // of languages, sorted
let answer = null; // the shown results: {q, pictures} or {source, label, languages}, with milliseconds
let running = null; // the AbortController of the request in progress

const number = (value) => value.toLocaleString("en");
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
const wished = (ones) => ones.filter(({ lang }) => !$("lang").value || lang === $("lang").value);
const byName = (ones) => [...ones].sort((a, b) => names[a.lang].localeCompare(names[b.lang], "en"));
const copy = (id) => $(id).content.firstElementChild.cloneNode(true);
const said = ({ lang, text }, className = "") => element("span", { lang, className, dir: "auto" }, text);
const on = (target, type, listen) => target.addEventListener(type, listen);

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function show(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

async function ask(question) {
  running?.abort();
  const mine = (running = new AbortController());
  $("error").textContent = "";
  const waiting = setTimeout(() => show("Searching…"), 200); // most results arrive before this is read out
  $("found").setAttribute("aria-busy", "true");
  try {
    const found = await fetchAnswer(question, mine.signal);
    if (mine === running) keep({ ...question, ...found });
  } catch (error) {
    if (mine !== running) return;
    const isUnanswered = error instanceof TypeError || error instanceof SyntaxError;
    const sentence = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    show("", isUnanswered ? "The search server does not answer. Is `mmalign search` still running?" : sentence);
  } finally {
    clearTimeout(waiting);
    if (mine === running) $("found").removeAttribute("aria-busy");
  }
}

async function fetchAnswer({ q, blob, source }, signal) {
  const load = async (address, options) => {
    const response = await fetch(address, { signal, ...options });
    if (!response.ok) throw new Error((await response.json()).error);
    return response;
  };
  const query = new URLSearchParams(q ? { q } : {});
  if ($("source")?.value) query.set("source", $("source").value);
  if (q) return (await load(`/search?${query}`)).json();
  const body = blob ?? (await (await load(source)).blob());
  return (await load(`/search?${query}`, { method: "POST", body })).json();
}

function askFile(file) {
  if (!file) return;
  if (file.size > mostBytes) {
    return show("", `This image has ${number(file.size)} bytes; choose one of at most ${number(mostBytes)}.`);
  }
  $("q").value = "";
  remember({});
  ask({ blob: file, source: URL.createObjectURL(file), label: file.name || "your image" });
}

// The address: ?q=... or ?picture=..., and &lang=...

function remember(question, write = "pushState") {
  const query = new URLSearchParams(question);
  query.delete("lang");
  if ($("lang").value) query.set("lang", $("lang").value);
  const address = `/${query.size ? "?" : ""}${query}`;
  if (address !== location.pathname + location.search) history[write](null, "", address);
}

function askAddress() {
  const query = new URLSearchParams(location.search);
  const [q, picture, lang] = ["q", "picture", "lang"].map((name) => (query.get(name) ?? "").trim());
  $("lang").value = lang;
  if ($("lang").selectedIndex < 0) $("lang").value = "";
  $("q").value = q;
  if (q) return ask({ q });
  if (picture) return ask({ source: `/picture/${encodeURIComponent(picture)}`, label: `image ${picture} of the set` });
  running?.abort();
  running = null;
  show("");
  keep(null);
}

const visit = (question) => {
  remember(question);
  askAddress();
};

function keep(next) {
  if (answer?.blob && answer.source !== next?.source) URL.revokeObjectURL(answer.source);
  answer = next;
  render();
}

function render() {
  const hadFocus = $("found").contains(document.activeElement) || $("start").contains(document.activeElement);
  $("start").hidden = Boolean(answer);
  $("found").hidden = !answer;
  if (!answer) return;
  answer.pictures ? renderPictures(answer) : renderLanguages(answer);
  if (hadFocus) $("found-title").focus(); // the focused element was removed
}

function renderPictures({ q, pictures, milliseconds }) {
  const list = element("ol", { className: "pictures", role: "list" }, ...pictures.map(pictureItem)); // WebKit drops the role with the bullets
  $("found-title").replaceChildren("Images for ", element("bdi", {}, `“${q}”`));
  $("results").replaceChildren(list);
  show(pictures.length ? `${count(pictures.length, "image")} in ${milliseconds} ms, the nearest first.` : "No image was found.");
}

function pictureItem({ picture, score, captions }, place) {
  const item = copy("picture-template");
  const part = (selector) => item.querySelector(selector);
  const shown = wished(captions);
  const first = shown.find(({ lang }) => lang === "en") ?? shown[0];
  const none = `no caption in ${names[$("lang").value]}`;
  Object.assign(part("img"), { src: `/picture/${picture}`, alt: first?.text ?? `Image ${picture}, ${none}`, lang: first?.lang ?? "en" });
  part(".rank").textContent = place + 1;
  setScore(item, score);
  part(".text").append(first ? said(first) : element("span", { className: "none" }, none));
  part("details").hidden = shown.length < 2;
  part("summary").textContent = `All ${shown.length} captions`;
  part("ul").append(
    ...byName(shown).map((one) => element("li", {}, element("span", { className: "name" }, names[one.lang]), said(one, "said"))),
  );
  part("button").setAttribute("aria-label", `Search with this image, number ${place + 1}`);
  part("button").dataset.picture = picture;
  return item;
}

function renderLanguages({ source, label, languages, milliseconds }) {
  const shown = byName(wished(languages));
  const image = element("img", { src: source, alt: "The query image" });
  const asked = element("span", {}, `Searched with ${label}. Choose a caption to see its images.`);
  $("found-title").textContent = "Captions for this image";
  $("results").replaceChildren(
    element("figure", { className: "asked" }, image, asked),
    element("div", { className: "languages" }, ...shown.map(languageGroup)),
  );
  const captions = shown.flatMap((one) => one.captions).length;
  const found = `${count(captions, "caption")} in ${count(shown.length, "language")}, in ${milliseconds} ms`;
  show(captions ? `${found}, the nearest of each language first.` : "No caption was found.");
}

function languageGroup({ lang, captions }) {
  const group = copy("language-template");
  group.querySelector(".name").textContent = names[lang];
  group.querySelector(".code").textContent = names[lang] === lang ? "" : lang;
  for (const { text, score } of captions) {
    const item = copy("caption-template");
    const link = Object.assign(item.querySelector("a"), { href: `/?q=${encodeURIComponent(text)}`, lang, textContent: text });
    link.dataset.q = text;
    setScore(item, score);
    group.querySelector("ol").append(item);
  }
  return group;
}

function setScore(item, score) {
  item.querySelector(".value").textContent = score.toFixed(3);
  item.querySelector(".track i").style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
}

on($("form"), "submit", (event) => {
  event.preventDefault();
  const q = $("q").value.trim();
  q ? visit({ q }) : show("", "Type some words to search for.");
});
on(document, "click", (event) => {
  const asked = event.target.closest("[data-q], [data-picture]");
  if (!asked || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  visit({ ...asked.dataset });
});
on($("lang"), "change", () => {
  remember(location.search, "replaceState");
  if (answer) render();
});
if ($("source")) on($("source"), "change", () => answer && ask(answer));
on(window, "popstate", askAddress);
on($("file"), "change", () => {
  askFile($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
});
on(document, "paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) event.preventDefault();
  askFile(file);
});
for (const type of ["dragover", "dragleave", "drop"]) {
  on(document, type, (event) => {
    const holdsFile = event.dataTransfer?.types.includes("Files");
    if (type === "dragover" && holdsFile) $("drop").hidden = false;
    if (type === "drop" || (type === "dragleave" && !event.relatedTarget)) $("drop").hidden = true; // out of the window
    if (holdsFile) event.preventDefault(); // the browser would open the file
    if (type === "drop" && holdsFile) askFile(event.dataTransfer.files[0]);
  });
}

askAddress();

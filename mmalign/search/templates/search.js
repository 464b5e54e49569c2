// The search page: a question (text or picture) -> the server's JSON -> results.
//
//   form, example, caption, URL  -> ask({q})       -> GET /search   -> pictures
//   file, drop, paste, "search with this picture"  -> ask({blob})   -> POST /search -> captions by language
//
// What is shown follows from `answer` and the chosen language alone, so choosing a language asks nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const mostBytes = Number(document.body.dataset.mostBytes);
const names = new Intl.DisplayNames(["en"], { type: "language" });
let answer = null; // what is shown: {q, pictures} or {source, label, languages}, with milliseconds
let running = null; // the AbortController of the question that is under way

function languageName(code) {
  try {
    return names.of(code) || code;
  } catch {
    return code; // not a tag that the browser knows
  }
}

// Asking

async function ask(question) {
  running?.abort();
  const mine = (running = new AbortController());
  showError("");
  const waiting = setTimeout(() => say("Searching…"), 200); // most answers come before this is read out
  $("found").setAttribute("aria-busy", "true");
  try {
    const found = await fetchAnswer(question, mine.signal);
    if (mine !== running) return;
    keep({ ...question, ...found });
    render();
  } catch (error) {
    if (mine === running) fail(error);
  } finally {
    clearTimeout(waiting);
    if (mine === running) $("found").removeAttribute("aria-busy");
  }
}

async function fetchAnswer({ q, blob, source }, signal) {
  if (q) return (await load(`/search?q=${encodeURIComponent(q)}`, { signal })).json();
  const body = blob ?? (await (await load(source, { signal })).blob());
  return (await load("/search", { method: "POST", body, signal })).json();
}

async function load(address, options) {
  const response = await fetch(address, options);
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

function fail(error) {
  const unreachable = error instanceof TypeError || error instanceof SyntaxError;
  say("");
  showError(
    unreachable
      ? "The search server does not answer. Is `mmalign search` still running?"
      : `${error.message[0].toUpperCase()}${error.message.slice(1)}.`,
  );
}

function askText(q) {
  q = q.trim();
  $("q").value = q;
  if (!q) return showError("Type some words to search for.");
  ask({ q });
}

function askFile(file) {
  if (!file) return;
  if (file.size > mostBytes) {
    return showError(`This picture has ${file.size.toLocaleString("en")} bytes; choose one of at most ${mostBytes.toLocaleString("en")}.`);
  }
  $("q").value = "";
  remember({});
  ask({ blob: file, source: URL.createObjectURL(file), label: file.name || "your picture" });
}

function askPicture(number) {
  $("q").value = "";
  ask({ source: `/picture/${encodeURIComponent(number)}`, label: `picture ${number} of the set` });
}

// The address: ?q=... or ?picture=..., and &lang=...

function remember(question) {
  const query = new URLSearchParams(question);
  if ($("lang").value) query.set("lang", $("lang").value);
  const address = `/${query.size ? "?" : ""}${query}`;
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
}

function askAddress() {
  const query = new URLSearchParams(location.search);
  $("lang").value = query.get("lang") ?? "";
  if ($("lang").selectedIndex < 0) $("lang").value = "";
  if (query.get("q")) askText(query.get("q"));
  else if (query.get("picture")) askPicture(query.get("picture"));
  else showStart();
}

// Showing

function say(words) {
  $("status").textContent = words;
}

function showError(words) {
  $("error").textContent = words;
}

function showStart() {
  running?.abort();
  running = null;
  keep(null);
  $("q").value = "";
  $("start").hidden = false;
  $("found").hidden = true;
  say("");
  showError("");
}

function keep(next) {
  if (answer?.blob) URL.revokeObjectURL(answer.source);
  answer = next;
}

function render() {
  if (!answer) return;
  const hadFocus = $("found").contains(document.activeElement) || $("start").contains(document.activeElement);
  $("start").hidden = true;
  $("found").hidden = false;
  answer.pictures ? renderPictures() : renderLanguages();
  if (hadFocus) $("found-title").focus(); // what had the focus is gone
}

function renderPictures() {
  const { q, pictures, milliseconds } = answer;
  $("found-title").replaceChildren("Pictures for ", words("bdi", `“${q}”`));
  $("results").replaceChildren(list("ol", "pictures", pictures.map(pictureItem)));
  say(pictures.length ? `${count(pictures.length, "picture")} in ${milliseconds} ms, the nearest first.` : "No picture was found.");
}

function pictureItem({ picture, score, captions }, place) {
  const item = copy("picture-template");
  const shown = wished(captions);
  const first = shown.find(({ lang }) => lang === "en") ?? shown[0];
  const image = item.querySelector("img");
  image.src = `/picture/${picture}`;
  image.alt = first ? first.text : `Picture ${picture}, which has no caption in ${languageName($("lang").value)}`;
  if (first) image.lang = first.lang;
  item.querySelector(".rank").textContent = place + 1;
  setScore(item, score);
  item.querySelector(".text").append(
    first ? said("span", first) : words("span", `no caption in ${languageName($("lang").value)}`, "none"),
  );
  const details = item.querySelector("details");
  details.hidden = shown.length < 2;
  details.querySelector("summary").textContent = `All ${shown.length} captions`;
  details.querySelector("ul").append(...byName(shown).map(captionItem));
  const button = item.querySelector("button");
  button.setAttribute("aria-label", `Search with this picture, number ${place + 1}`);
  button.addEventListener("click", () => {
    remember({ picture });
    askPicture(picture);
  });
  return item;
}

function captionItem(caption) {
  const item = document.createElement("li");
  item.append(words("span", languageName(caption.lang), "name"), said("span", caption, "said"));
  return item;
}

function renderLanguages() {
  const { source, label, languages, milliseconds } = answer;
  const shown = byName(wished(languages));
  const asked = document.createElement("figure");
  const image = document.createElement("img");
  image.src = source;
  image.alt = "The picture that is searched with";
  asked.className = "asked";
  asked.append(image, words("span", `Searched with ${label}. Choose a caption to see its pictures.`));
  const groups = document.createElement("div");
  groups.className = "languages";
  groups.append(...shown.map(languageGroup));
  $("found-title").textContent = "Captions for this picture";
  $("results").replaceChildren(asked, groups);
  const captions = shown.reduce((sum, one) => sum + one.captions.length, 0);
  say(
    captions
      ? `${count(captions, "caption")} in ${count(shown.length, "language")}, in ${milliseconds} ms, the nearest of each language first.`
      : "No caption was found.",
  );
}

function languageGroup({ lang, captions }) {
  const group = copy("language-template");
  const name = languageName(lang);
  group.querySelector(".name").textContent = name;
  group.querySelector(".code").textContent = name === lang ? "" : lang;
  group.querySelector("ol").append(
    ...captions.map(({ text, score }) => {
      const item = copy("caption-template");
      const link = item.querySelector("a");
      link.href = `/?q=${encodeURIComponent(text)}`;
      link.dataset.q = text;
      link.lang = lang;
      link.textContent = text;
      setScore(item, score);
      return item;
    }),
  );
  return group;
}

function setScore(item, score) {
  item.querySelector(".value").textContent = score.toFixed(3);
  item.querySelector(".track i").style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
}

// Small parts

const wished = (ones) => ones.filter(({ lang }) => !$("lang").value || lang === $("lang").value);

const byName = (ones) => [...ones].sort((a, b) => languageName(a.lang).localeCompare(languageName(b.lang), "en"));

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const copy = (id) => $(id).content.firstElementChild.cloneNode(true);

function words(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

function said(tag, { lang, text }, className = "") {
  const element = words(tag, text, className);
  element.lang = lang;
  element.dir = "auto";
  return element;
}

function list(tag, className, items) {
  const element = document.createElement(tag);
  element.className = className;
  element.setAttribute("role", "list"); // WebKit takes it away with the bullets
  element.append(...items);
  return element;
}

// Start

function nameLanguages() {
  const select = $("lang");
  const options = [...select.options].slice(1);
  for (const option of options) option.textContent = languageName(option.value);
  options.sort((a, b) => a.textContent.localeCompare(b.textContent, "en"));
  select.append(...options);
  for (const code of document.querySelectorAll("[data-lang]")) code.textContent = languageName(code.dataset.lang);
}

function listenToPictures() {
  $("file").addEventListener("change", () => {
    askFile($("file").files[0]);
    $("file").value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) event.preventDefault();
    askFile(file);
  });
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true; // out of the window
  });
  document.addEventListener("drop", (event) => {
    $("drop").hidden = true;
    if (!holdsFile(event)) return;
    event.preventDefault();
    askFile(event.dataTransfer.files[0]);
  });
}

function listenToWords() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const q = $("q").value.trim();
    if (q) remember({ q });
    askText(q);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-q]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    remember({ q: link.dataset.q });
    askText(link.dataset.q);
  });
  $("lang").addEventListener("change", () => {
    const query = new URLSearchParams(location.search);
    query.delete("lang");
    if ($("lang").value) query.set("lang", $("lang").value);
    history.replaceState(null, "", `/${query.size ? "?" : ""}${query}`);
    render();
  });
  addEventListener("popstate", askAddress);
}

nameLanguages();
listenToPictures();
listenToWords();
askAddress();

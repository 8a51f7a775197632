"use strict";
const EVERY = 3000;
const lost = document.getElementById("lost");

// Make `old` like `fresh` with as few changes as can be: focus, selection, scrolling and open details stay as they are.
const morph = (old, fresh) => {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.hasAttribute("data-own")) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const named = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const like = place && !place.id && place.nodeName === child.nodeName ? place : null;
    const same = child.id ? named.get(child.id) : like;
    if (same && same === place) place = place.nextSibling;
    else old.insertBefore(same ?? child, place);
    if (same) morph(same, child);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
};

const tick = () => {
  document.getElementById("clock").textContent = `as of ${new Date().toTimeString().slice(0, 8)}`;
};
tick();

const show = async (response) => {
  if (response.status === 401) location.reload();
  if (!response.ok) throw new Error(response.status);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const box = document.querySelector("[data-tail]");
  const low = box && box.scrollTop + box.clientHeight > box.scrollHeight - 8;
  morph(document.querySelector("main"), page.querySelector("main"));
  if (low) box.scrollTop = box.scrollHeight;
  if (document.title !== page.title) document.title = page.title;
  tick();
};

let last = 0;
const ask = async (address, options) => {
  const turn = ++last;
  try {
    const response = await fetch(address, options);
    // of answers that overtake each other the newest counts
    if (turn === last) await show(response);
    lost.hidden = true;
  } catch {
    if (lost.hidden) lost.querySelector("time").textContent = new Date().toTimeString().slice(0, 8);
    lost.hidden = false;
  }
};

const loop = async () => {
  if (!document.hidden && document.querySelector("main[data-live]")) await ask(location.href);
  setTimeout(loop, document.querySelector("[data-busy]") ? EVERY / 3 : EVERY);
};
setTimeout(loop, EVERY);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && document.querySelector("main[data-live]")) ask(location.href);
});

document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  event.preventDefault();
  ask(event.target.action, { method: "POST", body: new URLSearchParams(new FormData(event.target)) });
});

// Values of a curve under the pointer, or by the arrow keys.
const point = (svg, pick) => {
  const points = JSON.parse(svg.dataset.points);
  const at = Math.max(0, Math.min(points.length - 1, pick(points)));
  const [x, , step, value] = points[at];
  svg.dataset.at = at;
  const hair = svg.querySelector(".hair");
  hair.setAttribute("x1", x);
  hair.setAttribute("x2", x);
  hair.removeAttribute("visibility");
  svg.parentNode.querySelector("output").textContent = `${value} at step ${step}`;
};
const unpoint = (svg) => {
  svg.querySelector(".hair").setAttribute("visibility", "hidden");
  svg.parentNode.querySelector("output").textContent = "";
};
const chart = (event) => event.target.closest?.("svg[data-points]");
document.addEventListener("pointermove", (event) => {
  const svg = chart(event);
  for (const other of document.querySelectorAll("svg[data-points]")) if (other !== svg && other !== document.activeElement) unpoint(other);
  if (!svg) return;
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  point(svg, (points) => {
    const right = points.findIndex((other) => other[0] >= x);
    if (right < 1) return right < 0 ? points.length - 1 : 0;
    return x - points[right - 1][0] < points[right][0] - x ? right - 1 : right;
  });
});
document.addEventListener("keydown", (event) => {
  const svg = chart(event);
  const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
  if (!svg || !by) return;
  event.preventDefault();
  point(svg, (points) => Number(svg.dataset.at ?? points.length - 1) + by);
});
document.addEventListener("focusout", (event) => {
  if (chart(event)) unpoint(chart(event));
});

// A log opens at its end, or at the line that was asked for.
const tail = document.querySelector("[data-tail]");
if (tail) tail.scrollTop = tail.scrollHeight;
document.querySelector(".log .here")?.scrollIntoView({ block: "center" });

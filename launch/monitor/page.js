"use strict";
// Ask every five seconds whether the page would be another one now; if so, take its new content.
const lost = document.getElementById("lost");
const answer = async (address) => {
  const response = await fetch(address);
  if (!response.ok) throw new Error(response.status);
  return response;
};
const refresh = async () => {
  const now = document.querySelector("main");
  const state = await (await answer("/poll.json")).json();
  if (state.digest === now.dataset.digest) return;
  const page = new DOMParser().parseFromString(await (await answer(location.href)).text(), "text/html");
  now.replaceWith(page.querySelector("main"));
  document.title = page.title;
};
const turn = async () => {
  if (!document.hidden) {
    try {
      await refresh();
      lost.hidden = true;
    } catch {
      if (lost.hidden) lost.querySelector("time").textContent = new Date().toLocaleTimeString();
      lost.hidden = false;
    }
  }
  setTimeout(turn, 5000);
};
setTimeout(turn, 5000);

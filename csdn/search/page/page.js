// The page's only script. Everything that the service says is put into the page as text, never as markup.
"use strict";

const field = (id) => document.getElementById(id);

field("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData();
  form.append("image", field("image").files[0]);
  for (const name of ["modality", "top", "camera"]) {
    if (field(name).value) form.append(name, field(name).value);
  }
  form.append("pictures", "true");
  say("Searching …");
  field("results").replaceChildren();
  try {
    const headers = field("token").value ? { Authorization: `Bearer ${field("token").value}` } : {};
    const response = await fetch("v1/search", { method: "POST", body: form, headers });
    const answer = await response.json();
    if (!response.ok) return say(`${answer.error}: ${answer.advice}`, true);
    say(answer.verdict);
    field("results").replaceChildren(...answer.people.map(item));
  } catch (error) {
    say(`The service does not respond (${error.message}); see whether it runs.`, true);
  }
});

function say(text, wrong = false) {
  field("status").textContent = text;
  field("status").classList.toggle("wrong", wrong);
}

function item(found) {
  const shown = document.createElement("li");
  const { camera, modality, time, picture: small } = found.images[0];
  if (small) {
    const picture = new Image();
    picture.src = small;
    picture.alt = `${found.person || "unlabelled"}, rank ${found.rank}`;
    shown.append(picture);
  }
  shown.append(line("b", `${found.rank}. ${found.person || "unlabelled"}`));
  if (found.match !== null) shown.className = found.match ? "match" : "below";
  shown.append(line("span", `score ${found.score.toFixed(3)}`));
  shown.append(line("small", [camera, modality, time].filter(Boolean).join(", ")));
  return shown;
}

function line(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

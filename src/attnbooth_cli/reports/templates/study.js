// A study: questions and sides in an order drawn for this participant, answers kept over a reload, and handed out.
const study = JSON.parse(document.getElementById("study").textContent);
const questions = new Map(study.questions.map((its) => [its.id, its]));
const KEPT = `attnbooth-study-${study.id}`;
const part = (id) => document.getElementById(id);

const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
const below = (limit) => {
  const fair = 2 ** 32 - (2 ** 32 % limit);
  for (;;) {
    const [drawn] = crypto.getRandomValues(new Uint32Array(1));
    if (drawn < fair) return drawn % limit;
  }
};
const shuffled = (items) => {
  const all = [...items];
  for (let last = all.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [all[last], all[other]] = [all[other], all[last]];
  }
  return all;
};

const fresh = () => ({
  participant: hex(8),
  name: "",
  place: -1,  // -1: not begun; the number of questions: done
  order: shuffled(study.questions).map((its) => ({ question: its.id, sides: shuffled(its.pictures.map((one) => one.id)) })),
  chosen: {},
});
const fits = (state) =>
  /^[0-9a-f]{16}$/.test(state.participant) && typeof state.name === "string" &&
  typeof state.chosen === "object" && state.chosen !== null && Number.isInteger(state.place) &&
  state.place >= -1 && state.place <= study.questions.length && state.order.length === study.questions.length &&
  new Set(state.order.map((its) => its.question)).size === study.questions.length &&
  state.order.every((its, place) => {
    const own = questions.get(its.question)?.pictures.map((one) => one.id);
    return own && its.sides.length === 2 && own.every((id) => its.sides.includes(id)) &&
      (place >= state.place || its.sides.includes(state.chosen[its.question]));
  });
const kept = () => {
  try {  // no storage here, or something else in it
    const state = JSON.parse(localStorage.getItem(KEPT));
    return state && fits(state) ? state : null;
  } catch {
    return null;
  }
};
let state = kept() ?? fresh();
const keep = () => {
  try {
    localStorage.setItem(KEPT, JSON.stringify(state));
  } catch { /* answers then last as long as the page is open */ }
};

const source = (question, id) => questions.get(question).pictures.find((one) => one.id === id).src;
const answers = () => JSON.stringify({
  kind: "attnbooth study answers", schema: 1, study: study.id, participant: state.participant, name: state.name,
  answers: state.order.map(({ question, sides: [left, right] }) => ({ question, left, right, chosen: state.chosen[question] })),
}, null, 1);

const show = () => {
  const total = study.questions.length;
  part("start").hidden = state.place >= 0;
  part("question").hidden = state.place < 0 || state.place >= total;
  part("end").hidden = state.place < total;
  if (!part("question").hidden) {
    const { question, sides } = state.order[state.place];
    part("place").textContent = `Question ${state.place + 1} of ${total}`;
    part("progress").value = state.place;
    part("prompt").textContent = questions.get(question).prompt;
    for (const button of document.querySelectorAll("[data-side]")) {
      const id = sides[button.dataset.side];
      button.querySelector("img").src = source(question, id);
      button.setAttribute("aria-pressed", String(state.chosen[question] === id));
    }
    part("back").disabled = state.place === 0;
  }
  if (!part("end").hidden) part("answers").textContent = answers();
};
const go = (place) => {
  state.place = place;
  document.activeElement?.blur();  // what is hidden now must not keep the arrow keys
  keep();
  show();
  if (place === study.questions.length) part("thanks").focus();
};
const choose = (side) => {
  const { question, sides } = state.order[state.place];
  state.chosen[question] = sides[side];
  go(state.place + 1);
};

part("start").addEventListener("submit", (event) => {
  event.preventDefault();
  state.name = part("name").value.replace(/\p{Surrogate}/gu, "").trim();
  go(0);
});
document.addEventListener("click", (event) => {
  const side = event.target.closest("[data-side]")?.dataset.side;
  if (side !== undefined) choose(Number(side));
});
part("back").addEventListener("click", () => go(state.place - 1));
part("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([answers()], { type: "application/json" }));
  link.download = `answers-${state.participant}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say("Downloaded");
});
part("copy").addEventListener("click", () => copyText(answers()));
part("again").addEventListener("click", () => {
  if (!confirm("Forget these answers?")) return;
  state = fresh();
  go(-1);
  part("name").value = "";
  part("name").focus();
});
document.addEventListener("keydown", (event) => {
  const elsewhere = event.target.closest?.("input, textarea, .scroll, pre") || part("viewer").open;
  if (elsewhere || event.repeat || event.ctrlKey || event.altKey || event.shiftKey || event.metaKey || state.place < 0) return;
  const asking = !part("question").hidden;
  if (asking && event.key === "ArrowLeft") choose(0);
  else if (asking && event.key === "ArrowRight") choose(1);
  else if (event.key === "Backspace" && state.place > 0) go(state.place - 1);
  else return;
  event.preventDefault();
});
part("name").value = state.name;
show();

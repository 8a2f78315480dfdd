// A click anywhere in a row goes where the row's own link goes; the keyboard has the link itself.
document.addEventListener("click", (event) => {
  if (event.target.closest("a, button") || String(getSelection())) return;
  event.target.closest("tr")?.querySelector("a")?.click();
});

// A box that hides what does not have all of its words.
const filter = document.querySelector("input[data-filter]");
if (filter) {
  const all = [...document.querySelectorAll(filter.dataset.filter)];
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of all) {
      const text = one.dataset.text.toLowerCase();
      one.hidden = !words.every((word) => text.includes(word));
    }
    document.getElementById("found").textContent = `${all.filter((one) => !one.hidden).length} of ${all.length}`;
  });
}

/* Tables of runs: a click on a heading sorts, a field above filters. */
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".runs table").forEach((table) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const label = document.createElement("label");
    label.className = "runs-filter";
    label.append("Filter: ");
    const field = document.createElement("input");
    field.type = "search";
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    label.append(field, " ", count);
    document.querySelector(".runs").before(label);
    const filter = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
    };
    field.addEventListener("input", filter);
    filter();
    heads.forEach((head, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const of = (row) => row.cells[k].textContent.trim();
        const both = (a, b) => of(a).localeCompare(of(b), "en", { numeric: true });
        body.append(...rows.sort((a, b) => (up ? both(a, b) : both(b, a))));
      });
    });
  });
});

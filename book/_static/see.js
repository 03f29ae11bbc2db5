/* The page "See it": waves on ECG paper by record and method, targets by measure and exponent. Its
   data stand in the page as JSON; nothing is loaded. */
document.addEventListener("DOMContentLoaded", () => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = { 1: "#0072b2", 2: "#d55e00", 3: "#009e73" };
  const NAMES = { 1: "P", 2: "QRS", 3: "T" };
  const PX_PER_S = 100, PX_PER_MV = 40, STRIP = 150;

  const make = (tag, attributes, parent) => {
    const element = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    parent.append(element);
    return element;
  };

  const choose = (form, text, names) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    names.forEach((name, k) => select.add(new Option(name, k)));
    label.append(`${text}: `, select);
    form.append(label, " ");
    return select;
  };

  const strip = (svg, record, waves, top, title) => {
    const middle = top + STRIP / 2;
    const at = (k) => [(k / record.rate) * PX_PER_S, middle - record.mv[k] * PX_PER_MV];
    const line = (first, last, colour, width) => {
      const points = [];
      for (let k = first; k <= last; k += 1) points.push(at(k).map((v) => v.toFixed(1)).join(","));
      make("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": width }, svg);
    };
    line(0, record.mv.length - 1, "#222", 1);
    waves.forEach(([wave, first, last]) => line(first, last, COLOURS[wave], 3));
    make("text", { x: 6, y: top + 18, "font-size": 14, fill: "#222" }, svg).textContent = title;
  };

  document.querySelectorAll(".see-waves").forEach((box) => {
    const { records, methods } = JSON.parse(box.querySelector("script").textContent);
    const form = document.createElement("p");
    const which = choose(form, "Record", records.map((record) => record.name));
    const how = choose(form, "Method", methods);
    const legend = document.createElement("p");
    Object.entries(NAMES).forEach(([wave, name]) => {
      const mark = document.createElement("span");
      mark.style.background = COLOURS[wave];
      mark.className = "see-mark";
      legend.append(mark, ` ${name} \u2003`);
    });
    const said = document.createElement("p");
    said.setAttribute("role", "status");
    const paper = document.createElement("div");
    paper.className = "see-paper";
    paper.tabIndex = 0;
    box.append(form, legend, paper, said);
    const draw = () => {
      const record = records[which.value];
      const width = (record.mv.length / record.rate) * PX_PER_S, height = 2 * STRIP;
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("width", width);
      svg.setAttribute("height", height);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${record.name}: annotated waves above, those of ${methods[how.value]} below`);
      make("rect", { width, height, fill: "#fffafa" }, svg);
      for (let x = 0; x <= width; x += 4)
        make("line", { x1: x, x2: x, y1: 0, y2: height, stroke: x % 20 ? "#f6d5d5" : "#e8a0a0", "stroke-width": x % 20 ? 0.4 : 0.8 }, svg);
      for (let y = 0; y <= height; y += 4)
        make("line", { x1: 0, x2: width, y1: y, y2: y, stroke: y % 20 ? "#f6d5d5" : "#e8a0a0", "stroke-width": y % 20 ? 0.4 : 0.8 }, svg);
      record.unknown.forEach(([first, last]) => {
        const [x, end] = [first, last].map((k) => (k / record.rate) * PX_PER_S);
        make("rect", { x, width: end - x, y: 0, height, fill: "#888", opacity: 0.18 }, svg);
      });
      strip(svg, record, record.truth, 0, "annotated");
      strip(svg, record, record.found[how.value], STRIP, methods[how.value]);
      paper.replaceChildren(svg);
      const dice = record.dice[how.value];
      said.textContent = dice === null ? "No wave is scored here." : `Dice of this record: ${dice.toFixed(3)} (1: every sample as annotated; grey is not annotated and not scored).`;
    };
    [which, how].forEach((select) => select.addEventListener("change", draw));
    draw();
  });

  document.querySelectorAll(".see-targets").forEach((box) => {
    const { names, measures, exponents, values } = JSON.parse(box.querySelector("script").textContent);
    const form = document.createElement("p");
    const measure = choose(form, "Measure", measures);
    const label = document.createElement("label");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: exponents.length - 1, step: 1, value: 0 });
    const shown = document.createElement("output");
    label.append("Exponent: ", slider, " ", shown);
    form.append(label);
    const said = document.createElement("p");
    said.setAttribute("role", "status");
    const paper = document.createElement("div");
    paper.className = "see-paper";
    paper.tabIndex = 0;
    box.append(form, paper, said);
    const draw = () => {
      const matrix = values[measure.value][slider.value];
      const table = document.createElement("table");
      const head = table.createTHead().insertRow();
      ["", ...names].forEach((name) => {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.textContent = name;
        head.append(cell);
      });
      matrix.forEach((row, i) => {
        const line = (table.tBodies[0] || table.createTBody()).insertRow();
        const first = document.createElement("th");
        first.scope = "row";
        first.textContent = names[i];
        line.append(first);
        row.forEach((value) => {
          const cell = line.insertCell();
          cell.textContent = value.toFixed(2);
          cell.style.background = `rgba(0, 114, 178, ${value})`;
          cell.style.color = value > 0.55 ? "#fff" : "inherit";
        });
      });
      paper.replaceChildren(table);
      shown.textContent = exponents[slider.value];
      const others = matrix.flatMap((row, i) => row.filter((_, j) => i !== j)).sort((a, b) => a - b);
      const [low, high] = [others[0], others[others.length - 1]];
      said.textContent = `Between different records the targets reach from ${low.toFixed(2)} to ${high.toFixed(2)}.`;
    };
    measure.addEventListener("change", draw);
    slider.addEventListener("input", draw);
    draw();
  });
});

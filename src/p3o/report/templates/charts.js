// Each .chart holds its Vega-Lite specification. Colours are CSS variables, so a change of theme needs no redrawing.
const options = { actions: false, renderer: "svg", tooltip: { theme: "custom", disableDefaultStyle: true } };
const charts = [...document.querySelectorAll(".chart")].map((place) => ({
  place,
  specification: JSON.parse(place.querySelector("script").textContent), // drawing removes it
}));
const drawn = charts.map(({ place, specification }) => {
  return vegaEmbed(place, specification, options).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
  });
});
Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", ""));

// The data behind a chart, one table after another, as a file that the browser makes itself.
const cell = (value) => (/[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : (value ?? ""));
const csv = (rows) => {
  const names = [...new Set(rows.flatMap(Object.keys))];
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\n");
};
for (const { place, specification } of charts) {
  const panel = place.closest(".panel");
  const button = panel.querySelector("button.csv");
  button.hidden = false;
  button.addEventListener("click", () => {
    const tables = Object.entries(specification.datasets).filter(([, rows]) => rows.length);
    const text = tables.map(([name, rows]) => (tables.length > 1 ? `# ${name}\n` : "") + csv(rows)).join("\n\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" }));
    link.download = `${panel.querySelector("h3").firstChild.textContent.trim()}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});

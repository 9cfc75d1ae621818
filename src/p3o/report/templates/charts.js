// Each .chart holds its Vega-Lite specification. Colours are CSS variables, so a change of theme needs no redrawing.
const options = { actions: false, renderer: "svg", tooltip: { theme: "custom", disableDefaultStyle: true } };
const drawn = [...document.querySelectorAll(".chart")].map((place) => {
  const specification = JSON.parse(place.querySelector("script").textContent);
  return vegaEmbed(place, specification, options).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
  });
});
Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", ""));

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});

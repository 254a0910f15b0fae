"use strict";
(() => {
  const holder = document.getElementById("data");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly reads a few HTML tags in labels; values are shown as they are.
  const plain = (value) => String(value).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  function layout(chart) {
    const axis = { gridcolor: style("--line"), linecolor: style("--line"), zeroline: false, automargin: true, fixedrange: true };
    return {
      margin: { l: 8, r: 12, t: 12, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: style("--ink") }, hovermode: chart.kind === "line" ? "x unified" : "closest",
      xaxis: { ...axis, showgrid: chart.kind === "bar", separatethousands: true, nticks: chart.kind === "bar" ? 5 : 7 },
      yaxis: { ...axis, showgrid: chart.kind === "line", rangemode: "tozero", separatethousands: true, nticks: 6, autorange: chart.kind === "bar" ? "reversed" : true },
      hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"), font: { color: style("--ink") } }, showlegend: false, separators: ".,",
    };
  }
  function trace(chart) {
    const exact = Number.isInteger(chart.y[0]) ? ",.0f" : ",.2f";
    const unit = chart.unit ? " " + chart.unit : "";
    if (chart.kind === "bar") {
      return { type: "bar", orientation: "h", x: chart.y, y: chart.x.map(plain), width: 0.62, marker: { color: style("--accent") }, hovertemplate: `%{y}: %{x:${exact}}${unit}<extra></extra>` };
    }
    return { type: "scatter", mode: "lines", x: chart.x, y: chart.y, line: { color: style("--accent"), width: 2 }, hovertemplate: `%{y:${exact}}${unit}<extra></extra>` };
  }
  function draw() {
    JSON.parse(holder.textContent).charts.forEach((chart, index) => {
      const place = document.getElementById("chart-" + index);
      if (place) Plotly.react(place, [trace(chart)], layout(chart), { displayModeBar: false, responsive: true });
    });
  }
  if (holder) { draw(); dark.addEventListener("change", draw); }
  for (const time of document.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (!isNaN(moment)) { time.title = time.textContent; time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }); }
  }
  for (const table of document.querySelectorAll("section table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => { const cell = row.cells[index]; return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value || "-Infinity"); };
      const rows = [...table.tBodies[0].rows].sort((a, b) => { const x = key(a), y = key(b); return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1); });
      table.tBodies[0].append(...rows);
    }));
  }
})();

"use strict";
(() => {
  // Plotly reads a few HTML tags in labels; values are shown as they are.
  const plain = (value) => (typeof value === "string" ? value.replaceAll("&", "&amp;").replaceAll("<", "&lt;") : value);

  async function library() {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (character) => character.charCodeAt(0));
    const text = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.textContent = await text;
    document.head.append(script);
  }

  async function draw(chart, place) {
    const whole = chart.y.every((value) => value === null || Number.isInteger(value));
    const shown = `%{y:,.${whole ? 0 : 2}f}${chart.unit ? " " + plain(chart.unit) : ""}<extra></extra>`;
    const axis = { zeroline: false, automargin: true, fixedrange: true, ticks: "", showline: false };
    const line = { type: "scatter", mode: chart.x.length > 1 ? "lines" : "markers", x: chart.x.map(plain), y: chart.y, fill: "tozeroy", line: { width: 2 }, hovertemplate: shown };
    const layout = {
      margin: { l: 4, r: 12, t: 8, b: 4, pad: 6 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans KR', sans-serif", size: 13 },
      hovermode: "x unified", showlegend: false, separators: ".,",
      hoverlabel: { bgcolor: "#fff" },
      xaxis: { ...axis, showgrid: false, nticks: place.clientWidth < 420 ? 4 : 7, hoverformat: "%a %-d %b %Y", tickformatstops: [{ dtickrange: [null, 86399999], value: "%H:%M\n%-d %b" }, { dtickrange: [86400000, "M1"], value: "%-d %b\n%Y" }, { dtickrange: ["M1", "M12"], value: "%b\n%Y" }, { dtickrange: ["M12", null], value: "%Y" }] },
      // thousands separators up to a million, letters beyond
      yaxis: { ...axis, showgrid: true, rangemode: "tozero", nticks: 5, separatethousands: true, exponentformat: "B", minexponent: 6 },
    };
    await Plotly.newPlot(place, [line], layout, { displayModeBar: false, responsive: true });
    // paper is narrower than the window that was drawn for: the drawing is scaled to it
    const scalable = () => place.querySelectorAll(".main-svg").forEach((svg) => svg.setAttribute("viewBox", `0 0 ${svg.width.baseVal.value} ${svg.height.baseVal.value}`));
    scalable();
    place.on("plotly_afterplot", scalable);
  }

  async function charts() {
    const places = [...document.querySelectorAll(".chart")];
    try {
      await library();
      const data = JSON.parse(document.getElementById("data").textContent);
      await Promise.all(data.map((chart, index) => draw(chart, places[index])));
    } catch (error) {
      for (const place of places) place.textContent = "This browser cannot draw the chart; its figures are in the warehouse.";
      throw error;
    }
  }
  if (document.getElementById("plotly")) charts();

  const age = new Intl.RelativeTimeFormat("en", { numeric: "always" });
  function since(moment) {
    const minutes = (moment - Date.now()) / 60000;
    if (Math.abs(minutes) < 1) return "just now";
    if (Math.abs(minutes) < 90) return age.format(Math.round(minutes), "minute");
    return Math.abs(minutes) < 2880 ? age.format(Math.round(minutes / 60), "hour") : age.format(Math.round(minutes / 1440), "day");
  }
  for (const time of document.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (isNaN(moment)) continue;
    time.title = time.textContent;
    time.textContent = moment.toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
    const shown = time.nextElementSibling;
    if (shown?.classList.contains("age")) shown.textContent = `, ${since(moment)}`;
  }

  for (const table of document.querySelectorAll(".rows")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => { const cell = row.cells[index]; return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? -Infinity : Number(cell.dataset.value); };
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }
})();

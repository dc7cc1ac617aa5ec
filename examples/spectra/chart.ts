/** Small line charts as SVG, with a logarithmic y axis. They read on a light and on a dark page. */

export interface Curve {
  /** Of the legend; curves with the same name have one colour and one entry. */
  name: string;
  points: readonly (readonly [x: number, y: number])[];
  /** Points from this index on are drawn thick. */
  thickFrom?: number;
  dashed?: boolean;
}

export interface Axes {
  title: string;
  x: string;
  y: string;
  /** Range of x, with labels at its ends and in the middle. */
  xRange: readonly [number, number];
  /** Range of y, positive; default: from the curves, out to whole powers of ten or halves of them. */
  yRange?: readonly [number, number];
}

const [WIDTH, HEIGHT] = [640, 320];
const [LEFT, RIGHT, TOP, BOTTOM] = [64, 150, 34, 44];
/** Middling tones: all of them stand out from white and from black. */
const COLOURS = ['#2f81f7', '#d9822b', '#2da44e', '#bf4b8a', '#8250df', '#8c959f'];

/** The text of an SVG file. */
export function lineChart(axes: Axes, curves: readonly Curve[]): string {
  const values = curves.flatMap(({ points }) => points.map(([, y]) => y));
  const [low, high] = axes.yRange ?? [roundDown(Math.min(...values)), roundUp(Math.max(...values))];
  const [from, to] = axes.xRange;
  const px = (x: number): number => LEFT + ((x - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const py = (y: number): number =>
    TOP + (Math.log(high / Math.max(y, low)) / Math.log(high / low)) * (HEIGHT - TOP - BOTTOM);
  const at = (n: number): string => String(Number(n.toFixed(1)));

  const names = [...new Set(curves.map(({ name }) => name))];
  const colour = (name: string): string => COLOURS[names.indexOf(name) % COLOURS.length]!;
  const bottom = HEIGHT - BOTTOM;
  const right = WIDTH - RIGHT;
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img">`,
    `<title>${escaped(axes.title)}</title>`,
    '<style>text{font:12px sans-serif;fill:#57606a}.title{font-size:14px}.axis{stroke:#8c959f}.grid{stroke:#8c959f;stroke-opacity:.25}',
    'polyline{fill:none;stroke-linejoin:round;stroke-linecap:round}',
    '@media (prefers-color-scheme:dark){text{fill:#adbac7}}</style>',
    `<text class="title" x="${LEFT}" y="20">${escaped(axes.title)}</text>`,
  ];
  for (const tick of ticks(low, high)) {
    lines.push(`<line class="grid" x1="${LEFT}" x2="${right}" y1="${at(py(tick))}" y2="${at(py(tick))}"/>`);
    lines.push(`<text text-anchor="end" x="${LEFT - 6}" y="${at(py(tick) + 4)}">${label(tick)}</text>`);
  }
  for (const x of [from, (from + to) / 2, to]) {
    lines.push(`<text text-anchor="middle" x="${at(px(x))}" y="${bottom + 16}">${Number(x.toPrecision(3))}</text>`);
  }
  lines.push(
    `<line class="axis" x1="${LEFT}" x2="${right}" y1="${bottom}" y2="${bottom}"/>`,
    `<line class="axis" x1="${LEFT}" x2="${LEFT}" y1="${TOP}" y2="${bottom}"/>`,
    `<text text-anchor="middle" x="${(LEFT + right) / 2}" y="${HEIGHT - 8}">${escaped(axes.x)}</text>`,
    `<text text-anchor="middle" transform="translate(14 ${(TOP + bottom) / 2}) rotate(-90)">${escaped(axes.y)}</text>`,
  );
  for (const { name, points, thickFrom, dashed } of curves) {
    const polyline = (part: Curve['points'], width: number, opacity: number): void => {
      const coordinates = part.map(([x, y]) => `${at(px(x))},${at(py(y))}`).join(' ');
      const style = `stroke-width="${width}" stroke-opacity="${opacity}"${dashed ? ' stroke-dasharray="6 6"' : ''}`;
      lines.push(`<polyline stroke="${colour(name)}" ${style} points="${coordinates}"/>`);
    };
    polyline(points, dashed ? 2 : 1.2, thickFrom === undefined ? 1 : 0.6);
    if (thickFrom !== undefined) polyline(points.slice(thickFrom), 3, 1);
  }
  for (const [i, name] of names.entries()) {
    const y = TOP + 10 + 20 * i;
    lines.push(
      `<line stroke="${colour(name)}" stroke-width="3" x1="${right + 14}" x2="${right + 34}" y1="${y}" y2="${y}"/>`,
      `<text x="${right + 40}" y="${y + 4}">${escaped(name)}</text>`,
    );
  }
  return `${lines.join('\n')}\n</svg>\n`;
}

const roundDown = (x: number): number => (x >= 3 * tenBelow(x) ? 3 * tenBelow(x) : tenBelow(x));
const roundUp = (x: number): number => [1, 3, 10].map((by) => by * tenBelow(x)).find((y) => y >= x)!;
const tenBelow = (x: number): number => 10 ** Math.floor(Math.log10(x));

/** Powers of ten, and their triples where there are few of them. */
function ticks(low: number, high: number): number[] {
  const powers: number[] = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high) + 1e-9; e++) powers.push(10 ** e);
  const few = powers.length < 5;
  const all = few ? powers.flatMap((x) => [x, 3 * x]) : powers.filter((_, i) => i % Math.ceil(powers.length / 7) === 0);
  return all.filter((x) => x >= low * 0.999 && x <= high * 1.001);
}

const label = (x: number): string =>
  x >= 0.001 && x < 10_000 ? String(Number(x.toPrecision(2))) : x.toExponential(0).replace('e+', 'e');

const escaped = (text: string): string => text.replace(/&/g, '&amp;').replace(/</g, '&lt;');

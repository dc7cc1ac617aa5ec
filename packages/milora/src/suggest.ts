/**
 * "Did you mean …?" for messages: the candidate nearest to a mistyped word.
 *
 * Distance is the restricted Damerau–Levenshtein distance (insert, delete, replace, swap neighbours), letter case
 * ignored. A candidate is near when at most a third of the longer word differs; nothing near gives no suggestion,
 * because a wrong guess misleads more than silence.
 */

/**
 * The candidate nearest to `word`, or undefined if none is near. The earliest wins a tie.
 *
 * @example
 * nearest('q_porj', ['k_proj', 'q_proj']); // 'q_proj'
 */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Infinity;
  for (const candidate of candidates) {
    const reach = Math.max(1, Math.floor(Math.max(word.length, candidate.length) / 3));
    if (Math.abs(word.length - candidate.length) > reach) continue;
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance <= reach && distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** `; did you mean "…"?` to append to a message, or the empty string if nothing is near. */
export function didYouMean(word: string, candidates: Iterable<string>): string {
  const near = nearest(word, candidates);
  return near === undefined ? '' : `; did you mean ${JSON.stringify(near)}?`;
}

function editDistance(a: string, b: string): number {
  // Rows i − 2, i − 1 and i of the table whose entry (i, j) is the distance between a[0, i) and b[0, j).
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      let cost = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        cost = Math.min(cost, beforeLast[j - 2]! + 1);
      row.push(cost);
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length]!;
}

// Words that a model with a small vocabulary does not know, and known ones that are spelt alike, as the program finds
// them.

const OFFERED = 3;

/** Runs of letters with apostrophes inside them, in lower case. Numbers are left out: in prompts they are weights. */
function wordsOf(text) {
  const pieces = text.match(/[\p{L}\p{N}']+/gu) ?? [];
  return pieces.map((piece) => piece.replace(/^'+|'+$/g, "").toLowerCase()).filter((piece) => /\p{L}/u.test(piece));
}

/** The unknown words of a text, each once, with the nearest known ones. */
export function unknownWords(text, known) {
  if (!known.size) return [];
  const unknown = new Set(wordsOf(text).filter((word) => !known.has(word)));
  return [...unknown].map((word) => ({ word, nearest: nearest(word, known) }));
}

/** A word of three letters may differ in one, of six in two, of nine and more in three. */
function nearest(word, known) {
  const most = Math.min(3, Math.floor(word.length / 3));
  const found = [];
  for (const other of known) {
    if (Math.abs(other.length - word.length) > most) continue;
    const far = distance(word, other);
    if (far <= most) found.push({ other, far });
  }
  found.sort((a, b) => a.far - b.far || (a.other < b.other ? -1 : 1));
  return found.slice(0, OFFERED).map(({ other }) => other);
}

/** Insertions, deletions, changes and swaps of neighbours from one word to another. */
function distance(from, to) {
  let [older, old] = [null, Array.from({ length: to.length + 1 }, (_, i) => i)];
  for (let i = 1; i <= from.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= to.length; j += 1) {
      const change = old[j - 1] + (from[i - 1] === to[j - 1] ? 0 : 1);
      row[j] = Math.min(change, old[j] + 1, row[j - 1] + 1);
      const swapped = i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1];
      if (swapped) row[j] = Math.min(row[j], older[j - 2] + 1);
    }
    [older, old] = [old, row];
  }
  return old.at(-1);
}

/** The text with a word put in the place of another, wherever that stands alone. */
export function replaced(text, word, by) {
  return text.replace(/[\p{L}\p{N}']+/gu, (piece) => (piece.toLowerCase() === word ? by : piece));
}

// Which words of two sentences differ.

const words = (text) => text.match(/\S+/g) ?? [];
const bare = (word) => word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, '') || word;

/**
 * Splits `text` into runs [{text, differs}] by the longest common subsequence of its words with those of `other`;
 * case and punctuation at a word's ends do not count.
 */
export function diffWords(text, other) {
  const a = words(text);
  const b = words(other);
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = bare(a[i]) === bare(b[j]) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const runs = [];
  for (let i = 0, j = 0; i < a.length; i++) {
    while (j < b.length && bare(a[i]) !== bare(b[j]) && length[i][j + 1] >= length[i + 1][j]) j++;
    const differs = !(j < b.length && bare(a[i]) === bare(b[j]));
    if (!differs) j++;
    const last = runs.at(-1);
    if (last && last.differs === differs) last.text += ` ${a[i]}`;
    else runs.push({ text: a[i], differs });
  }
  return runs;
}

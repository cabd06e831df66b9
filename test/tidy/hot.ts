// What must not stand on a hot path, where each I/O passes: see CONTRIBUTING, "How the house is
// built".
//
// Hot are the bodies of `reserve`, `submit`, `poll` and `release` of HPDI's queue and of every
// driver, by their names, and whatever else stands between `// hot:begin` and `// hot:end`.

const HOT_METHOD = /^ {2}(?:reserve|submit|poll|release)\([^;]*?\{$/gm;
const HOT_METHOD_FILES = /^lib\/(?:hpdi\/queue|drivers\/.*)\.ts$/;
const BEGIN = '// hot:begin';
const END = '// hot:end';

const BANNED: readonly [RegExp, string][] = [
  [/\bBigInt\b|\b\d+n\b/, 'BigInt'],
  [/\bBig(?:Ui|I)nt64Array\b/, 'BigInt array'],
  [/\bDataView\b/, 'DataView'],
  [/\bAtomics\b/, 'Atomics'],
  [/(?<!\bthrow )\bnew\b/, 'new'],
  [/=>|\bfunction\s*\(/, 'closure'],
  [/\.\.\./, 'spread'],
  [/\b(?:async|await|yield|Promise)\b/, 'promise or generator'],
  [/\.(?:map|forEach|filter|reduce|some|every|find|findIndex|flatMap)\(/, 'array'],
  [/\.(?:slice|subarray|concat|splice|from|keys|values|entries)\(/, 'copy or view'],
  [/\bfor\s*\((?:const|let)\s[^;)]*\s(?:of|in)\s/, 'for…of or for…in'],
  [/`/, 'text made from parts'],
  [/\bread(?:U?Int|Big)\w+\(/, 'Buffer read'],
  // (Where both sides are numbers it is a constant.)
  [/\*\*(?! ?\d)|(?<!\b\d+ )\*\*|\bMath\.pow\b/, 'power'],
];

/** One reading of the clock per batch is fine, one per operation is not. */
const CLOCK = /\b(?:performance|Date)\.now\b|\bhrtime\b/;

/** One line per banned thing: `file:line: what`. */
export function bannedInHotPaths(file: string, text: string): string[] {
  const code = blankOut(text);
  const offences: string[] = [];
  for (const { begin, end, perBatch, problem } of hotRegions(file, text, code)) {
    const firstLine = text.slice(0, begin).split('\n').length;
    if (problem !== '') {
      offences.push(`${file}:${firstLine}: ${problem}`);
      continue;
    }
    const lines = code.slice(begin, end).split('\n');
    const inLoop = linesInLoops(lines);
    for (const [index, line] of lines.entries()) {
      if (CLOCK.test(line) && (!perBatch || inLoop[index] === true)) {
        offences.push(`${file}:${firstLine + index}: clock`);
      }
      for (const [pattern, what] of BANNED) {
        if (pattern.test(line)) offences.push(`${file}:${firstLine + index}: ${what}`);
      }
    }
  }
  return offences;
}

interface Region {
  readonly begin: number;
  readonly end: number;
  /** Runs once per batch: only its loops run once per operation. */
  readonly perBatch: boolean;
  readonly problem: string;
}

function hotRegions(file: string, text: string, code: string): Region[] {
  const regions: Region[] = [];
  for (let at = text.indexOf(BEGIN); at >= 0; at = text.indexOf(BEGIN, at + 1)) {
    const end = text.indexOf(END, at);
    const next = text.indexOf(BEGIN, at + 1);
    const open = end < 0 || (next >= 0 && next < end);
    const problem = open ? 'hot:begin without hot:end' : '';
    regions.push({ begin: at, end, perBatch: false, problem });
  }
  if (!HOT_METHOD_FILES.test(file)) return regions;
  for (const match of code.matchAll(HOT_METHOD)) {
    const begin = match.index + match[0].length;
    const end = code.indexOf('\n  }', begin);
    regions.push({ begin, end, perBatch: true, problem: '' });
  }
  return regions;
}

/** Which lines belong to a loop, its head included; the formatter makes indentation tell. */
function linesInLoops(lines: readonly string[]): boolean[] {
  let loopIndent = Infinity;
  return lines.map((line) => {
    const indent = line.search(/\S/);
    if (indent < 0) return loopIndent < Infinity;
    if (indent <= loopIndent) loopIndent = /^\s*(?:for|while|do)\b/.test(line) ? indent : Infinity;
    return loopIndent < Infinity;
  });
}

/**
 * The text with comments and what stands inside quotes replaced by blanks, line by line as before,
 * so that words in them are not mistaken for code. Backquotes stay.
 */
function blankOut(text: string): string {
  const token = /\/\/[^\n]*|\/\*[\s\S]*?\*\/|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"/g;
  return text.replace(token, (found) => found.replace(/[^\n]/g, ' '));
}

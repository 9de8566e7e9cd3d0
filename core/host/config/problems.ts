import { CodedError } from '../../contract/errors.js';

/** A place in the configuration, as keys and indexes from the root. */
export type Path = readonly (string | number)[];

/** One thing that is wrong with a configuration. */
export interface Problem {
  /** Where, e.g. `clusters[0].servers[1].port`; empty for the whole. */
  readonly path: string;
  /** Line in the file, from 1; null when the configuration did not come from a text. */
  readonly line: number | null;
  readonly column: number | null;
  /** What is wrong and how to put it right. Never a secret. */
  readonly message: string;
}

/** What is wrong with a configuration: all problems at once. */
export class ConfigError extends CodedError {
  /**
   * @param code `OUTLIVE_CONFIG_...`
   * @param source name of the file, or of where the configuration came from
   * @param problems in the order of the file
   */
  constructor(
    code: string,
    source: string,
    readonly problems: readonly Problem[],
    options?: { cause?: unknown },
  ) {
    super(code, 'config', describe(source, problems), options);
    this.name = 'ConfigError';
  }
}

/** `a`, 0, `b` becomes `a[0].b`. */
export function writePath(path: Path): string {
  let text = '';
  for (const key of path) {
    if (typeof key === 'number') text += `[${key}]`;
    else if (/^[\w-]+$/.test(key)) text += text === '' ? key : `.${key}`;
    else text += `[${JSON.stringify(key)}]`;
  }
  return text;
}

/** The candidate that was probably meant, or null. */
export function closest(word: string, candidates: readonly string[]): string | null {
  let best: string | null = null;
  let bestDistance = Math.min(3, Math.ceil(word.length / 2)) + 1;
  for (const candidate of candidates) {
    // A name that was cut short or spelt out (`db` apart) is meant more often than its edit distance says.
    const related = word.length >= 3 && (candidate.startsWith(word) || word.startsWith(candidate));
    const distance = related ? 1 : editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}

function describe(source: string, problems: readonly Problem[]): string {
  const lines = problems.map((problem) => {
    const place = problem.line === null ? '' : `:${problem.line}:${problem.column}`;
    return `${source}${place}: ${problem.path === '' ? '' : `${problem.path}: `}${problem.message}`;
  });
  return lines.length === 1 ? lines[0] : `${lines.length} problems\n${lines.map((line) => `  ${line}`).join('\n')}`;
}

const DURATION: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

const SIZE: Record<string, number> = {
  B: 1,
  kB: 1e3,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
};

/** What a duration looks like, for the JSON Schema. */
export const DURATION_PATTERN = /^\d+(\.\d+)?(ms|s|m|h)$/;

/** What a size looks like, for the JSON Schema. */
export const SIZE_PATTERN = /^\d+(\.\d+)?(B|kB|KB|MB|GB|KiB|MiB|GiB)$/;

/** Milliseconds of a duration such as `500ms`, `30s`, `2m`, `1h`; null when it is none. */
export function parseDuration(text: string): number | null {
  return measure(text, DURATION_PATTERN, DURATION);
}

/** Bytes of a size such as `64KiB`, `16MiB`, `1GB`; null when it is none. */
export function parseSize(text: string): number | null {
  return measure(text, SIZE_PATTERN, SIZE);
}

/** A duration in the form that the configuration takes, in the largest unit that divides it. */
export function formatDuration(ms: number): string {
  return write(ms, DURATION, ['h', 'm', 's', 'ms']);
}

/** A size in the form that the configuration takes, in the largest binary unit that keeps two decimals exact, else rounded. */
export function formatSize(bytes: number): string {
  const unit = ['GiB', 'MiB', 'KiB'].find((name) => bytes >= SIZE[name]) ?? 'B';
  return `${Math.round((bytes / SIZE[unit]) * 100) / 100}${unit}`;
}

function measure(text: string, pattern: RegExp, units: Record<string, number>): number | null {
  if (!pattern.test(text)) return null;
  const unit = text.replace(/^[\d.]+/, '');
  const value = Math.round(Number(text.slice(0, -unit.length)) * units[unit]);
  return Number.isSafeInteger(value) ? value : null;
}

function write(value: number, units: Record<string, number>, order: string[]): string {
  const unit = order.find((name) => value >= units[name] && value % units[name] === 0) ?? order[order.length - 1];
  return `${value / units[unit]}${unit}`;
}

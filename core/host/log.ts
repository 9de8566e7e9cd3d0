import { type DestinationStream, destination, pino } from 'pino';
import type { Log } from '../contract/index.js';
import type { LogConfig } from './config/index.js';

const SECRET_KEYS = ['password', 'secret', 'verifier', 'clientKey', 'cancelKey', 'passphrase', 'authorization'];

/**
 * Makes the log: JSON lines, or lines for people with `pretty`. Fields whose names tell of secrets are redacted, whoever logs
 * them; errors are logged with their code and message, with the stack only at level debug.
 *
 * @param sink where lines go; the standard error stream when absent
 */
export function createLog(config: LogConfig, sink: DestinationStream = destination({ fd: 2, sync: true })): Log {
  const error = (value: unknown) => describeError(value, config.level === 'debug');
  const log = pino(
    {
      level: config.level,
      base: undefined,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: error, error },
      redact: { paths: SECRET_KEYS.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]), censor: '[secret]' },
    },
    config.pretty ? { write: (line) => sink.write(prettify(line)) } : sink,
  );
  return {
    debug: (fields, message) => log.debug(fields, message),
    info: (fields, message) => log.info(fields, message),
    warn: (fields, message) => log.warn(fields, message),
    error: (fields, message) => log.error(fields, message),
  };
}

function describeError(value: unknown, withStack: boolean): unknown {
  if (!(value instanceof Error)) return value;
  const { code, culprit } = value as { code?: unknown; culprit?: unknown };
  const cause = value.cause === undefined ? undefined : describeError(value.cause, withStack);
  return { name: value.name, code, culprit, message: value.message, cause, stack: withStack ? value.stack : undefined };
}

/** `12:00:00.000 INFO  message  key=value ...` */
function prettify(line: string): string {
  const { time, level, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const rest = Object.entries(fields).map(([key, value]) => {
    return `${key}=${typeof value === 'string' && /^[\w.:/[\]-]+$/.test(value) ? value : JSON.stringify(value)}`;
  });
  return `${[String(time).slice(11, 23), String(level).toUpperCase().padEnd(5), msg, ...rest].join(' ')}\n`;
}

import { readdirSync, readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join, posix, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Rooms of the core and what each may import besides itself. A name with a slash stands for that file alone. */
const ROOMS: Record<string, readonly string[]> = {
  contract: [],
  stream: ['contract'],
  journal: ['contract', 'stream'],
  session: ['contract', 'stream', 'journal'],
  recovery: ['contract', 'stream', 'journal', 'session'],
  cluster: ['contract', 'stream', 'journal', 'session', 'recovery'],
  io: ['contract', 'recovery/exchange', 'cluster/link/index'],
  host: ['contract', 'stream', 'journal', 'session', 'recovery', 'cluster', 'io'],
};

/** Modules that touch the outside world, and who may import them: folders (with a slash at the end) and files. */
const OUTSIDE = ['net', 'tls', 'fs', 'child_process', 'worker_threads', 'http', 'https', 'http2', 'dgram', 'cluster'];
const OUTSIDE_ALLOWED: readonly (readonly [where: string, modules: readonly string[]])[] = [
  ['core/io/', OUTSIDE],
  ['core/host/admin.ts', ['http']],
  ['core/host/config/', ['fs']],
  // The hosts of the demo and of the tests are made of commands, and of scripts in files.
  ['core/host/demo/lab/', ['child_process', 'fs']],
  // So are the servers of the demo for SQL Server.
  ['core/host/demo/tds-servers.ts', ['child_process', 'fs']],
  ['plugins/embedded-postgres/', OUTSIDE],
];

/** Codecs open no socket, read no clock, start nothing. */
const NOT_IN_CODECS = [...OUTSIDE, 'timers'];

interface Import {
  readonly specifier: string;
  readonly dynamic: boolean;
}

/** The imports of a source text: static, type-only, re-exports, and dynamic ones with a plain specifier. */
function importsOf(text: string): Import[] {
  const code = withoutComments(text);
  const found: Import[] = [];
  for (const match of code.matchAll(/^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm)) {
    found.push({ specifier: match[1], dynamic: false });
  }
  for (const match of code.matchAll(/^\s*import\s*['"]([^'"]+)['"]/gm))
    found.push({ specifier: match[1], dynamic: false });
  for (const match of code.matchAll(/\b(?:import|require)\s*\(\s*['"`]([^'"`]+)['"`]/g)) {
    found.push({ specifier: match[1], dynamic: true });
  }
  return found;
}

function withoutComments(text: string): string {
  // Strings are matched along, so that a slash in one starts no comment.
  const parts = /('(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`)|\/\*[\s\S]*?\*\/|\/\/[^\n]*/g;
  return text.replace(parts, (_, string: string | undefined) => string ?? ' ');
}

/** What is wrong with the imports of a file; `path` is relative to the root, with slashes. */
function violations(path: string, text: string): string[] {
  return importsOf(text).flatMap(({ specifier, dynamic }) => {
    const reason = judge(path, specifier, dynamic);
    return reason === null ? [] : [`${path} imports ${specifier}: ${reason}`];
  });
}

function judge(path: string, specifier: string, dynamic: boolean): string | null {
  if (specifier.startsWith('.')) {
    return judgeInside(path, posix.normalize(posix.join(posix.dirname(path), specifier)), dynamic);
  }
  const builtin = specifier.replace(/^node:/, '').split('/')[0];
  if (!builtinModules.includes(builtin)) return null;
  if (path.startsWith('codecs/') && NOT_IN_CODECS.includes(builtin)) return 'codecs do not touch the outside world';
  if (!OUTSIDE.includes(builtin)) return null;
  const allowed = OUTSIDE_ALLOWED.some(([where, modules]) => path.startsWith(where) && modules.includes(builtin));
  return allowed ? null : 'only core/io touches the outside world';
}

function judgeInside(path: string, target: string, dynamic: boolean): string | null {
  const [top, room] = path.split('/');
  const [targetTop, targetRoom] = target.split('/');
  if (top === 'codecs' || top === 'plugins') {
    if (targetTop === top && targetRoom === room) return null;
    if (targetTop === 'core' && targetRoom === 'contract') return null;
    return `${top} import the contract and themselves only`;
  }
  if (!(room in ROOMS)) return 'the room is unknown; add it to the rule';
  if (targetTop === 'codecs' || targetTop === 'plugins') {
    const demo = path.startsWith('core/host/demo/') && dynamic && target.startsWith('plugins/embedded-postgres/');
    return demo ? null : 'the core loads codecs and plugins by name';
  }
  if (targetTop !== 'core') return 'the core imports nothing outside of itself';
  if (targetRoom === room) return null;
  const file = target.replace(/^core\//, '').replace(/\.[jt]s$/, '');
  const allowed = ROOMS[room].some((entry) => entry === targetRoom || entry === file);
  return allowed ? null : `${room} does not import ${targetRoom}`;
}

function sources(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)).split(sep).join('/'));
}

describe('the import rule', () => {
  it.each(['core', 'codecs', 'plugins'])('is kept by %s', (folder) => {
    const files = sources(folder);
    expect(files.length).toBeGreaterThan(0);
    expect(files.flatMap((path) => violations(path, readFileSync(join(ROOT, path), 'utf8')))).toEqual([]);
  });

  it.each([
    ['codecs/postgres/index.ts', `import { x } from '../../core/stream/queue.js';`],
    ['codecs/postgres/index.ts', `import { x } from '../tds/index.js';`],
    ['codecs/postgres/sql/a.ts', `export * from '../../../plugins/command/index.js';`],
    ['codecs/postgres/index.ts', `import { Socket } from 'node:net';`],
    ['codecs/postgres/index.ts', `import type { Socket } from 'net';`],
    ['codecs/postgres/index.ts', `import { setTimeout } from 'node:timers/promises';`],
    ['codecs/postgres/index.ts', `import 'fs/promises';`],
    ['codecs/postgres/index.ts', `const x = await import('node:worker_threads');`],
    ['plugins/command/index.ts', `import { spawn } from 'node:child_process';`],
    ['plugins/command/index.ts', `import { x } from '../../core/host/log.js';`],
    ['plugins/command/index.ts', `import { x } from '../credentials-file/index.js';`],
    ['core/contract/index.ts', `import { x } from '../stream/queue.js';`],
    ['core/stream/queue.ts', `import {\n  a,\n  b,\n} from '../journal/record.js';`],
    ['core/session/table.ts', `export { x } from '../recovery/replay.js';`],
    ['core/journal/record.ts', `import { x } from '../session/table.js';`],
    ['core/recovery/replay.ts', `import { x } from '../io/wire.js';`],
    ['core/recovery/replay.ts', `import { readFile } from 'node:fs/promises';`],
    ['core/io/wire.ts', `import { x } from '../recovery/replay.js';`],
    ['core/io/wire.ts', `import { x } from '../host/log.js';`],
    ['core/host/gateway.ts', `import postgres from '../../codecs/postgres/index.js';`],
    ['core/host/gateway.ts', `const x = await import('../../plugins/command/index.js');`],
    ['core/host/gateway.ts', `import { createServer } from 'node:http';`],
    ['core/host/admin.ts', `import { createServer } from 'node:net';`],
    ['core/host/config/load.ts', `import { spawn } from 'node:child_process';`],
    ['core/host/demo/index.ts', `import { start } from '../../../plugins/embedded-postgres/index.js';`],
    ['core/host/gateway.ts', `import { x } from '../../test/kit/index.js';`],
    ['core/attic/a.ts', `import { x } from '../contract/index.js';`],
  ])('forbids %s: %s', (path, text) => {
    expect(violations(path, text)).toHaveLength(1);
  });

  it.each([
    ['codecs/postgres/index.ts', `import { CodedError } from '../../core/contract/index.js';`],
    ['codecs/postgres/index.ts', `import { x } from './sql/lexer.js';`],
    ['codecs/postgres/sql/a.ts', `import { x } from '../messages.js';`],
    ['codecs/postgres/index.ts', `import { createHash } from 'node:crypto';`],
    ['codecs/postgres/index.ts', `import { serialize } from 'pg-protocol';`],
    ['codecs/postgres/index.ts', `// import { Socket } from 'node:net';`],
    ['codecs/postgres/index.ts', `/*\nimport { Socket } from 'node:net';\n*/ const x = 'http://a/*'; const y = 'fs';`],
    ['plugins/embedded-postgres/server.ts', `import { spawn } from 'node:child_process';`],
    ['core/recovery/replay.ts', `import { x } from '../journal/record.js';`],
    ['core/io/run.ts', `import { x } from '../recovery/exchange.js'; import { connect } from 'node:net';`],
    ['core/host/demo/index.ts', `const { start } = await import('../../../plugins/embedded-postgres/index.js');`],
    ['core/host/admin.ts', `import { createServer } from 'node:http';`],
  ])('allows %s: %s', (path, text) => {
    expect(violations(path, text)).toEqual([]);
  });
});

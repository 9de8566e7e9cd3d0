import type { Draws, Knowledge, Names, Put, Rewriting, Schema, SeenStatement } from './types.js';

/** One statement, understood. */
export interface Parsed {
  readonly text: string;
}

/**
 * Reads one statement with PostgreSQL's own parser.
 * @returns null when nothing in it can differ from server to server, or when it cannot be read
 */
export function read(_text: string): Parsed | null {
  return null;
}

/** The names about which `learn` and `rewrite` will ask the schema. */
export function namesOf(_parsed: Parsed): Names {
  return { relations: [], functions: [], sequences: [] };
}

/** Takes from what the client saw what later (and earlier) statements must agree with: time, sequence values. */
export function learn(_parsed: Parsed, _seen: SeenStatement, _schema: Schema, _knowledge: Knowledge): Draws {
  return { drawn: [], asked: [] };
}

/** Writes the statement so that it yields what the client saw, and nothing made up where it saw nothing. */
export function rewrite(
  _parsed: Parsed,
  _seen: SeenStatement,
  _schema: Schema,
  _knowledge: Knowledge,
  _put: Put,
): Rewriting {
  return { text: null, doubts: new Map() };
}

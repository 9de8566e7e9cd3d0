import type { SqlEnvironment } from './facts.js';
import { lex, PUNCT, Tokens, WORD } from './lexer.js';

/** One statement of a text: bytes [start, end) without its semicolon and the comments around it. */
export interface StatementRange {
  readonly start: number;
  readonly end: number;
}

/** A statement as a range of tokens [from, to). */
export interface TokenRange extends StatementRange {
  readonly from: number;
  readonly to: number;
}

const LPAREN = 0x28;
const RPAREN = 0x29;
const SEMICOLON = 0x3b;
const DOT = 0x2e;

/** Whether token `i` is the unquoted word `word` (given in lower case). */
export function isWord(bytes: Uint8Array, tokens: Tokens, i: number, word: string): boolean {
  if (i >= tokens.count || tokens.kind[i] !== WORD) return false;
  const start = tokens.start[i];
  if (tokens.end[i] - start !== word.length) return false;
  for (let k = 0; k < word.length; k++) {
    const c = bytes[start + k];
    const lower = c >= 0x41 && c <= 0x5a ? c | 0x20 : c;
    if (lower !== word.charCodeAt(k)) return false;
  }
  return true;
}

/** Whether the statement that starts at token `from` may have a BEGIN ATOMIC body: CREATE [OR REPLACE] FUNCTION etc. */
function mayHaveBody(bytes: Uint8Array, tokens: Tokens, from: number): boolean {
  if (!isWord(bytes, tokens, from, 'create')) return false;
  let i = from + 1;
  if (isWord(bytes, tokens, i, 'or') && isWord(bytes, tokens, i + 1, 'replace')) i += 2;
  return isWord(bytes, tokens, i, 'function') || isWord(bytes, tokens, i, 'procedure');
}

/**
 * Cuts lexed text into its statements; empty ones are dropped. A semicolon ends a statement unless it is inside
 * parentheses (CREATE RULE ... DO (a; b)) or inside the BEGIN ATOMIC ... END body of an SQL function (manual: CREATE
 * FUNCTION, sql_body), which is exactly what the server's grammar allows; a text it does not allow it refuses as a whole.
 */
export function splitTokens(bytes: Uint8Array, tokens: Tokens): TokenRange[] {
  const ranges: TokenRange[] = [];
  let from = 0;
  let parens = 0;
  /** Open BEGIN ATOMICs and CASEs, both of which END closes. */
  let blocks = 0;
  let body: boolean | undefined;
  for (let i = 0; i < tokens.count; i++) {
    const kind = tokens.kind[i];
    if (kind === PUNCT) {
      const c = bytes[tokens.start[i]];
      if (c === LPAREN) parens++;
      else if (c === RPAREN) parens = parens > 0 ? parens - 1 : 0;
      else if (c === SEMICOLON && parens === 0 && blocks === 0) {
        if (i > from) ranges.push({ from, to: i, start: tokens.start[from], end: tokens.end[i - 1] });
        from = i + 1;
        body = undefined;
      }
      continue;
    }
    if (kind !== WORD) continue;
    const c = bytes[tokens.start[i]] | 0x20;
    // Only words that start with b, c or e matter below.
    if (c !== 0x62 && c !== 0x63 && c !== 0x65) continue;
    if (c === 0x62) {
      if (!isWord(bytes, tokens, i, 'begin') || !isWord(bytes, tokens, i + 1, 'atomic')) continue;
      body ??= mayHaveBody(bytes, tokens, from);
      if (body && (parens === 0 || blocks > 0)) blocks++;
    } else if (blocks > 0) {
      // CASE and END are reserved: only after a dot or AS are they names.
      const afterDot = tokens.kind[i - 1] === PUNCT && bytes[tokens.start[i - 1]] === DOT;
      if (afterDot || isWord(bytes, tokens, i - 1, 'as')) continue;
      if (isWord(bytes, tokens, i, 'case')) blocks++;
      else if (isWord(bytes, tokens, i, 'end')) blocks--;
    }
  }
  if (tokens.count > from) {
    ranges.push({ from, to: tokens.count, start: tokens.start[from], end: tokens.end[tokens.count - 1] });
  }
  return ranges;
}

const scratch = new Tokens();

/**
 * The statements of a simple Query, as byte ranges of `bytes` that exclude the semicolons; empty statements (nothing but
 * white space and comments) are dropped.
 */
export function splitStatements(bytes: Uint8Array, start: number, end: number, env: SqlEnvironment): StatementRange[] {
  lex(bytes, start, end, env.standardConformingStrings, scratch);
  return splitTokens(bytes, scratch).map((range) => ({ start: range.start, end: range.end }));
}

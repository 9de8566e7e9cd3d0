import { asBuffer, classifyTokens, isUnreadable, OPAQUE_FACTS } from './classify.js';
import type { SqlEnvironment, StatementFacts } from './facts.js';
import { lex, Tokens } from './lexer.js';
import { splitTokens } from './split.js';

/** A statement and its place in the text, in bytes from the text's beginning, without its semicolon. */
export interface Statement {
  readonly start: number;
  readonly end: number;
  readonly facts: StatementFacts;
}

/** A text as a whole: what one simple Query, or one Parse, asks for. Plain, frozen and cacheable by text. */
export interface QueryFacts {
  /** In order; none for an empty text. A text that cannot be read is one statement, with OPAQUE_FACTS. */
  readonly statements: readonly Statement[];
  /** Bytes in the text. */
  readonly length: number;
}

const scratch = new Tokens();

/** Reads bytes[start, end), the text of one simple Query or Parse without its closing zero byte. Never throws. */
export function analyseQuery(bytes: Uint8Array, start: number, end: number, env: SqlEnvironment): QueryFacts {
  const length = end - start;
  if (!isUnreadable(bytes, start, end, env)) {
    const tokens = lex(bytes, start, end, env.standardConformingStrings, scratch);
    if (!tokens.unterminated && !tokens.zero) {
      const buffer = asBuffer(bytes);
      const statements = splitTokens(bytes, tokens).map((range) =>
        Object.freeze({
          start: range.start - start,
          end: range.end - start,
          facts: classifyTokens(buffer, tokens, range.from, range.to, env),
        }),
      );
      return Object.freeze({ statements: Object.freeze(statements), length });
    }
  }
  const whole = Object.freeze({ start: 0, end: length, facts: OPAQUE_FACTS });
  return Object.freeze({ statements: Object.freeze([whole]), length });
}

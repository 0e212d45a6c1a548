# The project's flake with just enough of nixpkgs, written from scratch, to evaluate its package and its NixOS module.
{ flake, settings }:
let
  inherit (builtins) attrNames elem fromTOML functionArgs hasAttr head intersectAttrs isAttrs isBool;
  inherit (builtins) isList isString listToAttrs map mapAttrs readFile replaceStrings toJSON toString;

  check = what: test: path: value: if test value then value else throw "${path}: no ${what}: ${toJSON value}";
  types = {
    str = check "string" isString;
    bool = check "boolean" isBool;
    package = check "package" (v: v.type or "" == "derivation");
    enum = words: check "word of ${toString words}" (v: elem v words);
    listOf = type: path: value: map (type path) (check "list" isList path value);
    attrsOf = type: path: value: mapAttrs (n: v: type "${path}.${n}" v) (check "set" isAttrs path value);
    submodule = f: path: value: declared path (f { name = lastOf path; }).options value;
  };
  lastOf = path: let m = builtins.match ".*[.]([^.]*)" path; in head m;
  declared = path: options: given:
    let unknown = builtins.filter (n: !hasAttr n options) (attrNames given); in
    if unknown != [ ] then throw "${path}: there is no option ${toString unknown}"
    else mapAttrs
      (n: o:
        if o._type or "" != "option" then declared "${path}.${n}" o (given.${n} or { })
        else assert isString o.description; o.type "${path}.${n}" (given.${n} or o.default))
      options;

  lib = {
    inherit types;
    mkOption = o: { _type = "option"; } // o;
    mkEnableOption = what: lib.mkOption { type = types.bool; default = false; description = what; };
    mkIf = condition: value: if condition then value else { };
    mkDefault = value: value;
    mapAttrs' = f: set: listToAttrs (map (n: f n set.${n}) (attrNames set));
    genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);
    importTOML = path: fromTOML (readFile path);
    cleanSource = path: path;
    licenses = { mit = "mit"; asl20 = "asl20"; };
    platforms.linux = [ "x86_64-linux" ];
  };
  pkgs = {
    inherit lib;
    coreutils = "/coreutils";
    stdenv.hostPlatform.system = "x86_64-linux";
    rustPlatform.buildRustPackage = args: args // { type = "derivation"; outPath = "/package"; };
    callPackage = path: more: let f = import path; in f (intersectAttrs (functionArgs f) pkgs // more);
  };
  # As nixpkgs has it, in nixos/lib/utils.nix.
  utils.escapeSystemdExecArgs = args:
    builtins.concatStringsSep " " (map (arg: replaceStrings [ "%" "$" ] [ "%%" "$$" ] (toJSON arg)) args);

  self = (import flake).outputs {
    inherit self;
    nixpkgs = { inherit lib; legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (_: pkgs); };
  };
  outer = self.nixosModules.default { inherit lib pkgs; };
  module = import (head outer.imports) { inherit config lib pkgs utils; };
  config = declared "config" module.options { services.codchifs = outer.services.codchifs // settings; };
  package = self.packages.x86_64-linux.default;
in
{
  inherit (package) pname version postInstall meta;
  lock = readFile package.cargoLock.lockFile != "" && builtins.pathExists (package.src + "/Cargo.toml");
  config = builtins.seq (builtins.deepSeq config.services.codchifs.users null) module.config;
}

{
  config,
  lib,
  pkgs,
  utils,
  ...
}:

let
  inherit (lib) mkEnableOption mkIf mkOption types;
  cfg = config.services.codchifs;

  options = user: if user.allow == "nobody" then [ ] else [ "-o" "allow_${user.allow}" ];

  # A drop-in for the unit that the package has.
  service = name: user: {
    name = "codchifs@${name}";
    value = {
      overrideStrategy = "asDropin";
      wantedBy = [ "multi-user.target" ];
      # An empty line takes away what the unit says.
      serviceConfig = {
        ExecStartPre = [
          ""
          # It may fail on what a killed process left, which the mount takes away.
          "-${utils.escapeSystemdExecArgs [ "${pkgs.coreutils}/bin/mkdir" "-p" user.mountPoint ]}"
        ];
        ExecStart = [
          ""
          (utils.escapeSystemdExecArgs (
            [ "${cfg.package}/bin/codchifs" "--user" name "mount" "--foreground" "--stop-timeout=5" ]
            ++ options user
            ++ map (machine: "--machine=${machine}") user.machines
            ++ map (pattern: "--exclude=${pattern}") user.exclude
            ++ [ "--secrets=${user.secrets}" ]
            ++ user.extraArgs
            ++ [ user.mountPoint ]
          ))
        ];
      };
    };
  };
in
{
  options.services.codchifs = {
    enable = mkEnableOption "codchifs, and mount.codchifs for fileSystems";

    package = mkOption {
      type = types.package;
      description = "The package of codchifs.";
    };

    userAllowOther = mkOption {
      type = types.bool;
      default = false;
      description = "Whether plain users may mount with allow_other or allow_root. The services need none of it.";
    };

    users = mkOption {
      default = { };
      description = "The users whose machines are served, each by a service of its own.";
      example = {
        alice = { };
        bob.allow = "other";
      };
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              mountPoint = mkOption {
                type = types.str;
                default = "/mnt/codchi/${name}";
                description = "Where the machines are shown.";
              };
              allow = mkOption {
                type = types.enum [ "root" "other" "nobody" ];
                default = "root";
                description = "Who gets in besides the one who mounts: root, others as the permissions say (but into no file that has secrets of Codchi), or nobody.";
              };
              machines = mkOption {
                type = types.listOf types.str;
                default = [ ];
                description = "Only these machines; all, where it is empty.";
              };
              exclude = mkOption {
                type = types.listOf types.str;
                default = [ ];
                description = "Patterns, as of gitignore(5), of what is left out.";
              };
              secrets = mkOption {
                type = types.enum [ "include" "omit" ];
                default = "include";
                description = "Whether the values of secrets are shown.";
              };
              extraArgs = mkOption {
                type = types.listOf types.str;
                default = [ ];
                description = "More arguments of `codchifs mount`.";
              };
            };
          }
        )
      );
    };
  };

  config = mkIf cfg.enable {
    # For mount(8), which looks for its helper there, and for everybody.
    system.fsPackages = [ cfg.package ];
    environment.systemPackages = [ cfg.package ];
    programs.fuse.userAllowOther = mkIf cfg.userAllowOther true;
    systemd = {
      packages = [ cfg.package ];
      tmpfiles.packages = [ cfg.package ];
      services = lib.mapAttrs' service cfg.users;
    };
  };
}
